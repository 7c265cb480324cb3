-- grant(epoch, (model, engine, credits)*): these lanes are there from now on, and no others. Requests of a model (of none:
-- those that take any) that become ready go to the engine at once, until the credits are used.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local lanes = prefix .. 'lanes'
redis.call('DEL', lanes)
for i = 2, #ARGV, 3 do
  redis.call('HSET', lanes, 'engine:' .. ARGV[i], ARGV[i + 1], 'credits:' .. ARGV[i], ARGV[i + 2])
end
return {'ok', (#ARGV - 1) / 3}
