-- Keeps a ticket, unless its user has as many as one may have.
--
-- KEYS: the ticket; the tickets of its user, each with the time at which it expires
-- ARGV: who asked for the ticket; the name of the ticket among those of its user; the ms it lasts; how many one may have
-- Reply: 1: kept; 0: the user has enough
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], 0, now)
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
