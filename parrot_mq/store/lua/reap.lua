-- reap(epoch): requests whose lease ran out, and those whose back-off ended; at most 100 of each.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
even_when_full()
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
  local r = redis.call('HMGET', req_key(rid), 'state', 'rev')
  if r[1] == 'waiting' then make_ready(rid, tonumber(r[2])) end
end
settle()
hint_ready()
return {'ok', (#expired == 100 or #due == 100) and 1 or 0}
