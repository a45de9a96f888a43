-- Counts what a node wants to hold, unless its user would have more than the limit over all nodes.
--
-- KEYS: the set of nodes; the node's own counts; the time until which the user's requests are paid for, in µs
-- ARGV: the node; for how many ms its counts stand; requests a minute, 0: not counted here;
--       then for each count its field, how many the node has with the new one, and the limit
-- Reply: 0: counted; n: the request comes n µs too early; -n: the n-th limit is reached
local BURST = 60000000

local per_minute = tonumber(ARGV[3])
if per_minute > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local paid = tonumber(redis.call('GET', KEYS[3])) or 0
  paid = math.min(math.max(paid, now), now + BURST) + BURST / per_minute -- never further: another clock may have set it
  if paid > now + BURST then
    return math.ceil(paid - now - BURST)
  end
  redis.call('SET', KEYS[3], string.format('%.0f', paid), 'PX', math.ceil((paid - now) / 1000))
end

if #ARGV == 3 then
  return 0
end
local nodes = redis.call('SMEMBERS', KEYS[1])
for i = 4, #ARGV, 3 do
  local sum = tonumber(ARGV[i + 1])
  for _, node in ipairs(nodes) do
    if node ~= ARGV[1] then
      sum = sum + (tonumber(redis.call('HGET', 'chatserver:node:' .. node .. ':open', ARGV[i])) or 0)
    end
  end
  if sum > tonumber(ARGV[i + 2]) then
    return -(i - 1) / 3
  end
end
for i = 4, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 0
