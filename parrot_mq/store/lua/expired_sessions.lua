-- expired_sessions(epoch, count): sessions whose time ran out and that have nothing live; those that have are put off.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
even_when_full()
local expired = {}
for _, sid in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'sessions', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))) do
  local live = redis.call('HGET', sess_key(sid), 'live')
  if not live then
    redis.call('ZREM', prefix .. 'sessions', sid)
  elseif tonumber(live) > 0 then
    redis.call('ZADD', prefix .. 'sessions', now + TOMBSTONE_MS, sid)
  else
    expired[#expired + 1] = sid
  end
end
return {'ok', expired}
