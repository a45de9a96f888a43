-- Read what follows of a run.
-- KEYS: the run's stream, blocks and owner. ARGV: the first block that is wanted, the number behind which entries are
-- wanted, how many blocks and how many entries at most.
-- Returns how many of the keys there are, 0 also where nobody owns the run any more; blocks; and, with the last of the
-- blocks, the chunks of the stream.

local blocks = redis.call('LRANGE', KEYS[2], ARGV[1], ARGV[1] + ARGV[3] - 1)
local chunks = {}
if #blocks < tonumber(ARGV[3]) then
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[4])) do
        table.insert(chunks, entry[2][2])
    end
end
local is_released = redis.call('HGET', KEYS[3], 'node') == ''
return {is_released and 0 or redis.call('EXISTS', unpack(KEYS)), blocks, chunks}
