-- Uses a ticket up.
--
-- KEYS: the ticket
-- ARGV: the name of the ticket among those of its user
-- Reply: who asked for the ticket; nil: there is none
local holder = redis.call('GETDEL', KEYS[1])
if holder then
  redis.call('ZREM', 'chatserver:tickets:' .. string.match(holder, ' (.*)'), ARGV[1])
end
return holder
