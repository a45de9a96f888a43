-- Read what follows of a run, until it is enough: blocks, and behind the last of these the chunks of the stream.
-- KEYS: the run's stream, blocks and owner. ARGV: the first block that is wanted, the number behind which entries are
-- wanted, how many bytes are enough, how many entries are.
-- Returns how many of the keys there are, 0 also where nobody owns the run any more; blocks; chunks; 1: there may be
-- more.

local AT_ONCE = 16 -- An entry may have 64 KiB.
local room, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local blocks, chunks = {}, {}
for at = tonumber(ARGV[1]), redis.call('LLEN', KEYS[2]) - 1 do
    if room <= 0 then break end
    local block = redis.call('LINDEX', KEYS[2], at)
    room = room - #block
    table.insert(blocks, block)
end
local after, is_end = ARGV[2] .. '-0', false
while room > 0 and #chunks < most and not is_end do
    local entries = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', AT_ONCE)
    for _, entry in ipairs(entries) do
        room = room - #entry[2][2]
        after = entry[1]
        table.insert(chunks, entry[2][2])
    end
    is_end = #entries < AT_ONCE
end
local is_released = redis.call('HGET', KEYS[3], 'node') == ''
return {is_released and 0 or redis.call('EXISTS', unpack(KEYS)), blocks, chunks, is_end and 0 or 1}
