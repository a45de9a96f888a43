-- Tell the owner of a run to cancel it, and write it where the owner looks, in case that the message is lost.
-- KEYS: the owner of the run. ARGV: what the names of nodes begin with, what the name of a list of cancels ends with,
-- what is told, the run. Returns whether the run has an owner.
local owner = redis.call('HGET', KEYS[1], 'node')
if not owner or owner == '' then
  return 0
end
redis.call('SADD', ARGV[1] .. owner .. ARGV[2], ARGV[4])
redis.call('EXPIRE', ARGV[1] .. owner .. ARGV[2], 60) -- An owner that is gone looks no more.
redis.call('PUBLISH', ARGV[1] .. owner, ARGV[3] .. ' ' .. ARGV[4])
return 1
