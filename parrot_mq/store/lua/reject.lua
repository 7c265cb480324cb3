-- reject(epoch, request, error): fails a request that no engine ever started.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local state = redis.call('HGET', req_key(ARGV[2]), 'state')
if state == 'ready' or state == 'waiting' then
  kill(ARGV[2], 'dead', ARGV[3])
  serve()
  hint('ready', 'ready', joined(ready), 'dead', joined(dead))
end
return {'ok'}
