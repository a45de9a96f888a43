-- Tell the owners of runs something about these, each owner in one message.
-- KEYS: the owners of the runs. ARGV: what the names of channels begin with, what is told, the runs.
local told = {}
for i, key in ipairs(KEYS) do
  local owner = redis.call('HGET', key, 'node')
  if owner and owner ~= '' then
    told[owner] = told[owner] or {ARGV[2]}
    table.insert(told[owner], ARGV[i + 2])
  end
end
for owner, words in pairs(told) do
  redis.call('PUBLISH', ARGV[1] .. owner, table.concat(words, ' '))
end
