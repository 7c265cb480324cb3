-- discard(batch, "r"|"v", id*): undoes a batch that failed half-way; objects of other batches are left alone.
even_when_full()
local batch, kind = ARGV[1], ARGV[2]
local gone = {}

local function delete_variable(id, session)
  local var = var_key(id)
  local v = redis.call('HMGET', var, 'value_fence', 'raw_fence')
  if v[1] then redis.call('DEL', val_key(id, v[1])) end
  if v[2] then redis.call('DEL', val_key(id, v[2] .. '.raw')) end
  redis.call('DEL', var, var .. ':remote', var .. ':tokens')
  redis.call('SREM', sess_key(session) .. ':ids', id)
end

local function discard_request(id)
  local r = to_be_finished(id)
  local inputs = words(redis.call('HGET', req_key(id), 'inputs'))
  if not FINISHED[r.state] then
    if r.state == 'queued' or r.state == 'running' then control(r.engine, 'cancel', id, r.fence) end
    finish(id, r, 'cancelled', 'error', '')
  end
  redis.call('DEL', req_key(id))
  redis.call('SREM', sess_key(r.session) .. ':ids', id)
  local output = redis.call('HMGET', var_key(r.output), 'state', 'producer')
  if output[1] == 'pending' and output[2] == id then redis.call('HDEL', var_key(r.output), 'producer') end
  for _, vid in ipairs(inputs) do
    redis.call('ZREM', var_key(vid) .. ':wait', id)
    local stub = redis.call('HMGET', var_key(vid), 'home', 'batch', 'users')
    if stub[1] and stub[2] == batch and stub[3] == '1' and redis.call('EXISTS', var_key(vid) .. ':wait') == 0 then
      delete_variable(vid, r.session)
    end
  end
  gone[#gone + 1] = id
end

for i = 3, #ARGV do
  local id = ARGV[i]
  if kind == 'r' and redis.call('HGET', req_key(id), 'batch') == batch then
    discard_request(id)
  elseif kind == 'v' then
    local v = redis.call('HMGET', var_key(id), 'batch', 'session', 'users')
    if v[1] == batch and not v[3] then
      -- Requests of other batches that read it must not wait for ever.
      set_error(id, record('Cancelled', 'the submit that made variable ' .. id .. ' was taken back'))
      settle()
      if redis.call('EXISTS', var_key(id) .. ':wait') == 0 then delete_variable(id, v[2]) end
    end
  end
end
settle()
if #gone > 0 then hint('discarded', 'requests', joined(gone)) end
hint_ready()
return {'ok', #gone}
