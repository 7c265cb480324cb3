-- heartbeat(engine, group, ttl_ms, (field, value)*): the first one makes the engine's streams.
local key, before = eng_key(ARGV[1]), redis.call('HGET', eng_key(ARGV[1]), 'state')
if redis.call('EXISTS', key .. ':q') == 0 then
  redis.call('XGROUP', 'CREATE', key .. ':q', ARGV[2], '0', 'MKSTREAM')
end
for i = 4, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', key, ARGV[3])
if before ~= redis.call('HGET', key, 'state') then hint('engine', 'engine', ARGV[1]) end
return {'ok'}
