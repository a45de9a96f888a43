-- Let a node own a run that nobody owns.
-- KEYS: the node's lease, the run's owner. ARGV: the node, the TTL in seconds.
-- Returns the owner: the node itself, or another one. False: the node has no lease.

if redis.call('EXISTS', KEYS[1]) == 0 then
    return false
end
local owner = redis.call('HGET', KEYS[2], 'node')
if owner and owner ~= '' then
    return owner
end
redis.call('HSET', KEYS[2], 'node', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return ARGV[1]
