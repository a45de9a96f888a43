-- Hand over what is new of the runs of a node, if the node is alive and owns them, each behind what is there.
-- KEYS: the node's lease. ARGV: the node, the TTL in seconds of what is kept of a run; then for each run its id, the
-- number before the first new event (-1: there is none, the node asks), the number of the last one, and the chunk.
-- Returns false: the node has no lease. Otherwise two values for each run that is not at its last event now: its place
-- among the runs (from 0), and the number that it is at; -1: another node owns it.

if redis.call('EXISTS', KEYS[1]) == 0 then
    return false
end
local node, ttl, others = ARGV[1], ARGV[2], {}
for place = 3, #ARGV, 4 do
    local stream, before, last = 'chatserver:run:' .. ARGV[place], tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2])
    local owner, tail = redis.call('HGET', stream .. ':owner', 'node'), -1
    if not owner then -- Redis has lost it: whoever writes the run owns it.
        redis.call('HSET', stream .. ':owner', 'node', node)
        redis.call('EXPIRE', stream .. ':owner', ttl)
        owner = node
    end
    if owner == node then
        local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
        tail = newest and tonumber(string.match(newest[1], '^%d+')) or 0
        if tail == before then
            if tail == 0 then -- What there may be without an end is of no use.
                redis.call('DEL', stream, stream .. ':blocks')
            end
            redis.call('XADD', stream, last .. '-0', 'd', ARGV[place + 3])
            if tail == 0 then
                redis.call('EXPIRE', stream, ttl)
            end
            redis.call('PUBLISH', stream, ARGV[place + 3])
            tail = last
        end
    end
    if tail ~= last then
        table.insert(others, (place - 3) / 4)
        table.insert(others, tail)
    end
end
return others
