-- grant(epoch, hints, (model, engine, credits)*): these lanes are there from now on, and no others. Requests of a model (of
-- none: those that take any) that become ready go to the engine at once, until the credits are used, with `hints`
-- (members of a JSON object, or nothing) in their plans.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local lanes = prefix .. 'lanes'
redis.call('DEL', lanes)
for i = 3, #ARGV, 3 do
  redis.call('HSET', lanes, 'engine:' .. ARGV[i], ARGV[i + 1], 'credits:' .. ARGV[i], ARGV[i + 2])
end
if #ARGV > 2 and ARGV[2] ~= '' then redis.call('HSET', lanes, 'hints', ARGV[2]) end
return {'ok', (#ARGV - 2) / 3}
