-- want(variable, kind, value_ms, strictness, is_deadline, stream)
local vid, kind, value_ms, strictness = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key = var_key(vid)
local old = redis.call('HMGET', key, 'state', 'strictness', 'producer', 'session', 'stream')
if not old[1] then return {'unknown'} end
if old[1] ~= 'pending' then return {'ok', old[1]} end
local objective
if kind ~= '' then
  objective = '{"kind":"' .. kind .. '"'
  if tonumber(value_ms) > 0 then objective = objective .. ',"value_ms":' .. value_ms end
  if ARGV[5] == '1' then
    -- The time left becomes a point in time; a nearer one is stricter.
    local at = now + tonumber(value_ms)
    objective = objective .. ',"at_ms":' .. string.format('%.0f', at)
    strictness = 5e13 + 1e13 - 1 - at
  end
  objective = objective .. '}'
  if strictness > tonumber(old[2] or 0) then
    redis.call('HSET', key, 'objective', objective, 'strictness', string.format('%.0f', strictness))
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
