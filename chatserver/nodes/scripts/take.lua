-- Take runs over from a node that is gone: from here on, nothing that it says of the runs is taken any more. Whoever
-- else has taken them may be unable to end them. A node that lives again keeps what it owns, and so does one to which
-- the database has given a run since then.
-- KEYS: the lease of that node, what that node had to cancel, the owners of the runs. ARGV: this node, that node, the
-- TTL in seconds.
-- Returns the places of the runs that are taken, counted from 1; the runs that were to be cancelled.
local lives = redis.call('EXISTS', KEYS[1]) == 1
local taken = {}
for i = 3, #KEYS do
  local owner, claimed = unpack(redis.call('HMGET', KEYS[i], 'node', 'claimed'))
  local is_theirs = owner == ARGV[2]
  if not (lives and is_theirs) and (claimed ~= '1' or is_theirs) then
    redis.call('HSET', KEYS[i], 'node', ARGV[1], 'claimed', 0)
    redis.call('EXPIRE', KEYS[i], ARGV[3])
    taken[#taken + 1] = i - 2
  end
end
return {taken, redis.call('SMEMBERS', KEYS[2])}
