-- reap(epoch): requests whose lease ran out, and those whose back-off ended; at most 100 of each.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local expired = redis.call('ZRANGEBYSCORE', prefix .. 'leases', '-inf', now, 'LIMIT', 0, 100)
for _, rid in ipairs(expired) do
  if redis.call('HGET', req_key(rid), 'state') == 'running' then
    redeliver(rid)
  else
    redis.call('ZREM', prefix .. 'leases', rid)
  end
end
local due = redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, 100)
for _, rid in ipairs(due) do
  redis.call('ZREM', prefix .. 'delayed', rid)
  if redis.call('HGET', req_key(rid), 'state') == 'waiting' then make_ready(rid) end
end
serve()
if #ready > 0 or #dead > 0 then hint('ready', 'ready', joined(ready), 'dead', joined(dead)) end
return {'ok', (#expired == 100 or #due == 100) and 1 or 0}
