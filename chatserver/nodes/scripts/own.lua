-- Let a node own a run that nobody owns, or one that the database has given to it: that one it publishes anew.
-- KEYS: the node's lease; the run's owner, stream and blocks. ARGV: the node, the TTL in seconds, 1: the database has
-- given it the run.
-- Returns the owner: the node itself, or another one. False: the node has no lease.

if redis.call('EXISTS', KEYS[1]) == 0 then
    return false
end
local owner = redis.call('HGET', KEYS[2], 'node')
if ARGV[3] == '1' then
    redis.call('DEL', KEYS[3], KEYS[4])
elseif owner and owner ~= '' then
    return owner
end
redis.call('HSET', KEYS[2], 'node', ARGV[1], 'claimed', ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return ARGV[1]
