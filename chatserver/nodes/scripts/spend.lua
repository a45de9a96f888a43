-- Adds to the tokens that users have spent on a day.
--
-- KEYS: the tokens of a user's day
-- ARGV: for how many s they are kept; then for each key the least that it must be, what it was where Redis has lost it,
--       and what is added
-- Reply: the tokens of each key
local totals = {}
for i, key in ipairs(KEYS) do
  local least, lost, added = unpack(ARGV, 3 * i - 1, 3 * i + 1)
  local spent = tonumber(redis.call('GET', key)) or tonumber(lost)
  totals[i] = math.max(spent, tonumber(least)) + tonumber(added)
  redis.call('SET', key, totals[i], 'EX', ARGV[1])
end
return totals
