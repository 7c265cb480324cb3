-- raise_epoch(epoch): makes it the newest if it is, and takes the lanes of older ones back; answers the newest.
local newest = tonumber(redis.call('GET', KEYS[1]) or 0)
if tonumber(ARGV[1]) > newest then
  newest = tonumber(ARGV[1])
  even_when_full()
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('DEL', prefix .. 'lanes')
end
return {'ok', newest}
