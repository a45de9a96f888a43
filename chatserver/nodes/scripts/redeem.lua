-- Uses a ticket up.
--
-- KEYS: the ticket
-- ARGV: the name of the ticket among those of its user
-- Reply: who asked for the ticket; nil: there is none
local holder = redis.call('GET', KEYS[1])
if holder then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', 'chatserver:tickets:' .. string.match(holder, ' (.*)'), ARGV[1])
end
return holder
