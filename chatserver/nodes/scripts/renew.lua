-- Keep what there is of runs. ARGV: the TTL in seconds, then their ids.

for index = 2, #ARGV do
    local stream = 'chatserver:run:' .. ARGV[index]
    for _, key in ipairs({stream, stream .. ':blocks', stream .. ':owner'}) do
        redis.call('EXPIRE', key, ARGV[1])
    end
end
