-- Delete what the journal has of a run. For a while nobody owns it: a node that was away must not take it for its own.
-- KEYS: the run's stream, blocks and owner. ARGV: the node, how many seconds that is; 0: nothing stays.

if redis.call('HGET', KEYS[3], 'node') == ARGV[1] then
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[3], 'node', '')
    redis.call('EXPIRE', KEYS[3], ARGV[2])
end
