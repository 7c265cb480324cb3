-- discard(batch, "r"|"v", id*): undoes a batch that failed half-way; objects of other batches are left alone.
local batch, kind = ARGV[1], ARGV[2]
local gone = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if kind == 'r' and redis.call('HGET', req_key(id), 'batch') == batch then
    local r = redis.call('HMGET', req_key(id), 'state', 'engine', 'fence', 'output', 'inputs', 'session')
    if r[1] == 'queued' or r[1] == 'running' then control(r[2], 'cancel', id, r[3]) end
    for _, vid in ipairs(words(r[5])) do redis.call('ZREM', var_key(vid) .. ':wait', id) end
    finish(id, 'cancelled')
    redis.call('DEL', req_key(id))
    redis.call('SREM', sess_key(r[6]) .. ':ids', id)
    if redis.call('HGET', var_key(r[4]), 'state') == 'pending' then redis.call('HDEL', var_key(r[4]), 'producer') end
    gone[#gone + 1] = id
  elseif kind == 'v' and redis.call('HGET', var_key(id), 'batch') == batch then
    local var = var_key(id)
    local v = redis.call('HMGET', var, 'session', 'value_fence')
    if v[2] then redis.call('DEL', val_key(id, v[2])) end
    redis.call('DEL', var, var .. ':wait', var .. ':remote', var .. ':tokens')
    redis.call('SREM', sess_key(v[1]) .. ':ids', id)
  end
end
if #gone > 0 then hint('discarded', 'requests', joined(gone)) end
return {'ok', #gone}
