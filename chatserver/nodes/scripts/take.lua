-- Take runs over whose owners have no lease: from here on, nothing that those say of the runs is taken any more.
-- KEYS: the owners of the runs. ARGV: this node, what the names of leases begin with.
-- Returns the places of the runs that are taken, counted from 1.
local taken = {}
for i, key in ipairs(KEYS) do
  local owner = redis.call('HGET', key, 'node')
  if not owner or owner == ARGV[1] or redis.call('EXISTS', ARGV[2] .. owner) == 0 then
    redis.call('HSET', key, 'node', ARGV[1])
    taken[#taken + 1] = i
  end
end
return taken
