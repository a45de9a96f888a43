-- Take runs over from a node that is gone: from here on, nothing that it says of the runs is taken any more. Whoever
-- else has taken them may be unable to end them. A node that lives again keeps what it owns.
-- KEYS: the lease of that node, the owners of the runs. ARGV: this node, that node, the TTL in seconds.
-- Returns the places of the runs that are taken, counted from 1.
local lives = redis.call('EXISTS', KEYS[1]) == 1
local taken = {}
for i = 2, #KEYS do
  if not lives or redis.call('HGET', KEYS[i], 'node') ~= ARGV[2] then
    redis.call('HSET', KEYS[i], 'node', ARGV[1])
    redis.call('EXPIRE', KEYS[i], ARGV[3])
    taken[#taken + 1] = i - 1
  end
end
return taken
