-- Writes how many a node has open: what has changed, or all anew.
--
-- KEYS: the node's counts
-- ARGV: for how many ms they stand; 1: all anew; then for each count its field and how many
-- Reply: how many counts there are now
if ARGV[2] == '1' then
  redis.call('DEL', KEYS[1])
end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('HLEN', KEYS[1])
