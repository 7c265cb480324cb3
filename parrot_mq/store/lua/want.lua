-- want(variable, kind, value_ms, strictness, is_deadline, stream)
local vid, kind = ARGV[1], ARGV[2]
local key = var_key(vid)
local old = redis.call('HMGET', key, 'state', 'strictness', 'producer', 'session', 'stream')
if not old[1] then return {'unknown'} end
if old[1] ~= 'pending' then return {'ok', old[1]} end
if kind ~= '' then
  local objective, strictness = stated(kind, ARGV[3], ARGV[4], ARGV[5])
  if tonumber(strictness) > tonumber(old[2] or 0) then
    redis.call('HSET', key, 'objective', objective, 'strictness', strictness)
    hint('objective', 'variable', vid, 'rev', redis.call('HINCRBY', key, 'rev', 1), 'objective', objective)
  end
end
if ARGV[6] == '1' and old[5] ~= '1' then
  redis.call('HSET', key, 'stream', '1')
  if old[3] then
    local producer = redis.call('HMGET', req_key(old[3]), 'state', 'engine', 'fence')
    if producer[1] == 'running' then control(producer[2], 'stream', old[3], producer[3]) end
  end
end
if old[4] and old[4] ~= '' then redis.call('ZADD', prefix .. 'sessions', 'XX', now + SESSION_TTL_MS, old[4]) end
return {'ok', old[1]}
