-- reject(epoch, request, error): fails a request that no engine has.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local state = redis.call('HGET', req_key(ARGV[2]), 'state')
if state == 'ready' or state == 'waiting' then
  even_when_full()
  kill(ARGV[2], 'dead', ARGV[3])
  settle()
  hint_ready()
end
return {'ok'}
