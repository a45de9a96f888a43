-- How far runs have come. ARGV: their ids. Returns for each the number of its newest event; 0: there is none.

local tails = {}
for index, run in ipairs(ARGV) do
    local newest = redis.call('XREVRANGE', 'chatserver:run:' .. run, '+', '-', 'COUNT', 1)[1]
    tails[index] = newest and tonumber(string.match(newest[1], '^%d+')) or 0
end
return tails
