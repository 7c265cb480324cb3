-- heartbeat(engine, group, ttl_ms, (field, value)*): the first one makes the engine's streams.
local key = eng_key(ARGV[1])
local before = redis.call('HGET', key, 'state')
even_when_full()
if redis.call('EXISTS', key .. ':q') == 0 then
  redis.call('XGROUP', 'CREATE', key .. ':q', ARGV[2], '0', 'MKSTREAM')
end
redis.call('HSET', key, unpack(ARGV, 4))
redis.call('PEXPIRE', key, ARGV[3])
if before ~= redis.call('HGET', key, 'state') then hint('engine', 'engine', ARGV[1]) end
return {'ok'}
