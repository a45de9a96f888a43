-- Move what is merged of a run from its stream to its blocks.
-- KEYS: the run's stream, blocks and owner. ARGV: the node, the TTL in seconds, how many blocks there are, the number
-- of the last event of the new ones, and these.
-- Returns how many blocks there are now; -1: another node owns the run.

if redis.call('HGET', KEYS[3], 'node') ~= ARGV[1] then
    return -1
end
local count = redis.call('LLEN', KEYS[2])
if count == tonumber(ARGV[3]) then
    count = redis.call('RPUSH', KEYS[2], unpack(ARGV, 5))
    redis.call('XTRIM', KEYS[1], 'MINID', (ARGV[4] + 1) .. '-0')
end
for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, ARGV[2])
end
return count
