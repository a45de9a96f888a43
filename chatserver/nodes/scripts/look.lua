-- A node shows that it lives, and learns who else does, and which of its runs are to be cancelled.
-- KEYS: all nodes, the lease of this node, what this node has to cancel.
-- ARGV: this node, how long the lease holds in ms, what the names of leases begin with; the runs that the last reply
-- told to cancel.
-- Returns 1 where Redis did not know this node, else 0; who lives; whose lease is missing; the runs.
local is_new = redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], 1, 'PX', ARGV[2])
local living, missing = {}, {}
for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local found = redis.call('EXISTS', ARGV[3] .. node) == 1 and living or missing
  found[#found + 1] = node
end
for i = 4, #ARGV do
  redis.call('SREM', KEYS[3], ARGV[i])
end
return {is_new, living, missing, redis.call('SMEMBERS', KEYS[3])}
