-- delete_ids(session, count): deletes some of a closed session's objects, and it itself once none is left.
local sid = ARGV[1]
local key = sess_key(sid)
if redis.call('HGET', key, 'state') == 'open' then
  return err('Conflict', sid, 'session ' .. sid .. ' is open; close it before it is deleted')
end
for _, id in ipairs(redis.call('SPOP', key .. ':ids', ARGV[2])) do
  if string.match(id, '^%d+%-r%-') then
    kill(id, 'cancelled', record('Expired', 'the session was deleted', id))
    redis.call('DEL', req_key(id))
  else
    local var = var_key(id)
    local v = redis.call('HMGET', var, 'value_fence', 'raw_fence')
    if v[1] then redis.call('DEL', val_key(id, v[1])) end
    if v[2] then redis.call('DEL', val_key(id, v[2] .. '.raw')) end
    -- Consumers in other sessions learn that it will never come.
    set_error(id, record('Expired', 'the session of variable ' .. id .. ' was deleted'))
    serve()
    redis.call('DEL', var, var .. ':wait', var .. ':remote', var .. ':tokens')
  end
end
serve()
if #ready > 0 or #dead > 0 then hint('ready', 'ready', joined(ready), 'dead', joined(dead)) end
local left = redis.call('SCARD', key .. ':ids')
if left == 0 then
  redis.call('DEL', key)
  redis.call('ZREM', prefix .. 'sessions', sid)
end
return {'ok', left}
