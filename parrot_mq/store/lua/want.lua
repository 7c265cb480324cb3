-- want((variable, kind, value_ms, strictness, is_deadline, stream)*): answers the state of each, empty if it is unknown.
local WIDTH = 6
local objectives, sessions = {}, {}

local function want(vid, kind, value_ms, strictness, is_deadline, stream)
  local key = var_key(vid)
  local old = redis.call('HMGET', key, 'state', 'strictness', 'producer', 'session', 'stream')
  if not old[1] then return '' end
  if old[1] ~= 'pending' then return old[1] end
  if kind ~= '' then
    local objective, strict = stated(kind, value_ms, strictness, is_deadline)
    if tonumber(strict) > tonumber(old[2] or 0) then
      redis.call('HSET', key, 'objective', objective, 'strictness', strict)
      objectives[#objectives + 1] = vid .. ' ' .. objective
    end
  end
  if stream == '1' and old[5] ~= '1' then
    redis.call('HSET', key, 'stream', '1')
    if old[3] then
      local producer = redis.call('HMGET', req_key(old[3]), 'state', 'engine', 'fence')
      if producer[1] == 'running' then control(producer[2], 'stream', old[3], producer[3]) end
    end
  end
  if old[4] and old[4] ~= '' then sessions[old[4]] = true end
  return old[1]
end

local answers = {}
for i = 1, #ARGV, WIDTH do answers[#answers + 1] = want(unpack(ARGV, i, i + WIDTH - 1)) end
if #objectives > 0 then hint('objectives', 'objectives', table.concat(objectives, '\n')) end
for session in pairs(sessions) do redis.call('ZADD', prefix .. 'sessions', 'XX', now + SESSION_TTL_MS, session) end
return {'ok', answers}
