-- delete_ids(session, count): deletes some of a closed session's objects, and it itself once none is left.
local sid = ARGV[1]
local key = sess_key(sid)
if redis.call('HGET', key, 'state') == 'open' then
  return err('Conflict', sid, 'session ' .. sid .. ' is open; close it before it is deleted')
end
local tenant, later = redis.call('HGET', key, 'tenant'), {}

local function delete_variable(id)
  local var = var_key(id)
  local v = redis.call('HMGET', var, 'state', 'value_fence', 'raw_fence', 'users', 'tenant')
  if v[5] ~= tenant then return end
  if tonumber(v[4] or 1) > 1 then
    -- A stub that other sessions of this partition read as well.
    redis.call('HINCRBY', var, 'users', -1)
    return
  end
  -- Consumers in other sessions learn that it will never come. Those of a large fan-out are not all served in one run:
  -- the variable stays until they are.
  if v[1] == 'pending' then
    set_error(id, record('Expired', 'the session of variable ' .. id .. ' was deleted'))
  elseif redis.call('EXISTS', var .. ':wait') == 1 then
    serve_rest_of(id)
  end
  settle()
  if redis.call('EXISTS', var .. ':wait') == 1 then
    later[#later + 1] = id
    return
  end
  if v[2] then redis.call('DEL', val_key(id, v[2])) end
  if v[3] then redis.call('DEL', val_key(id, v[3] .. '.raw')) end
  redis.call('DEL', var, var .. ':remote', var .. ':tokens')
end

for _, id in ipairs(redis.call('SPOP', key .. ':ids', ARGV[2])) do
  if string.match(id, '^%d+%-r%-') then
    kill(id, 'cancelled', record('Expired', 'the session was deleted', id))
    redis.call('DEL', req_key(id))
  else
    delete_variable(id)
  end
end
if #later > 0 then redis.call('SADD', key .. ':ids', unpack(later)) end
settle()
hint_ready()
local left = redis.call('SCARD', key .. ':ids')
if left == 0 then
  redis.call('DEL', key)
  redis.call('ZREM', prefix .. 'sessions', sid)
end
return {'ok', left}
