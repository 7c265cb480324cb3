-- The second half of submit: everything is as it should be, and is applied.

for _, f in ipairs(functions) do
  local key = prefix .. 'fn:' .. tenant .. ':' .. f.digest
  if redis.call('HSETNX', key, 'segments', f.segments) == 1 then redis.call('HSET', key, 'name', f.name) end
end

local ids, entries, set_late = {}, {}, {}

local function apply_variable(v)
  local fact = facts[v.id]
  if v.known then
    if v.sets then
      resolve(v.id, to_be_resolved(v.id), value_fields(v.id, v.text, v.fence, v.size, v.digest))
      set_late[#set_late + 1] = v.id .. ':' .. v.digest .. ':' .. v.size
    end
    return
  end
  ids[#ids + 1] = v.id
  if v.sets then
    redis.call('HSET', var_key(v.id), 'session', sid, 'tenant', tenant, 'name', v.name, 'batch', batch,
      'created_ms', now_ms, 'rev', '1', 'ready_ms', now_ms, unpack(value_fields(v.id, v.text, v.fence, v.size, v.digest)))
    -- Nothing can wait for what did not exist, but somebody may have been told the id beforehand.
    redis.call('PUBLISH', prefix .. 'ch:v:' .. v.id, v.id)
  elseif fact.producer then
    redis.call('HSET', var_key(v.id), 'session', sid, 'tenant', tenant, 'name', v.name, 'state', 'pending', 'rev', '0',
      'batch', batch, 'created_ms', now_ms, 'producer', fact.producer)
  else
    redis.call('HSET', var_key(v.id), 'session', sid, 'tenant', tenant, 'name', v.name, 'state', 'pending', 'rev', '0',
      'batch', batch, 'created_ms', now_ms)
  end
  if v.objective ~= '' and not v.sets then
    local objective, strictness = stated(unpack(words(v.objective)))
    redis.call('HSET', var_key(v.id), 'objective', objective, 'strictness', strictness)
    fact.objective = objective
  end
end

-- A variable of another partition has a stub here, which the sessions that read it share.
local function apply_stub(vid)
  local key = var_key(vid)
  if not facts[vid].known then redis.call('DEL', key) end
  if redis.call('SADD', sess_key(sid) .. ':ids', vid) == 1 then redis.call('HINCRBY', key, 'users', 1) end
  if facts[vid].known then return end
  redis.call('HSET', key, 'session', sid, 'tenant', tenant, 'name', '', 'state', 'pending', 'rev', '0',
    'batch', batch, 'home', facts[vid].home, 'created_ms', now_ms)
  hint('import', 'variable', vid, 'tenant', tenant)
end

local specs, states, resolved, noted, objectives, doomed, at_once = {}, {}, {}, {}, {}, {}, {}

local function apply_request(r, score)
  local need, failed, output = 0, nil, facts[r.output]
  for _, vid in ipairs(r.inputs) do
    local input = facts[vid]
    failed = failed or (input.state == 'error' and input.error)
    if input.state == 'pending' then need = need + 1 end
  end
  for _, vid in ipairs(r.inputs) do
    local input = facts[vid]
    if input.state == 'pending' then
      if not failed then redis.call('ZADD', var_key(vid) .. ':wait', score, r.id) end
    elseif input.state == 'ready' and not noted[vid] then
      noted[vid] = true
      resolved[#resolved + 1] = vid .. ':' .. input.digest .. ':' .. input.size
    end
  end
  need = int(need)
  local state = (need == '0') and 'ready' or 'waiting'
  redis.call('HSET', req_key(r.id), 'session', sid, 'tenant', tenant, 'call', r.call, 'function_name', r.name,
    'output', r.output, 'inputs', joined(r.inputs), 'spec', r.spec, 'digest', r.digest, 'batch', batch,
    'state', state, 'need', need, 'attempt', '0', 'fence', '', 'rev', '1', 'created_ms', now_ms,
    'ready_ms', (need == '0') and now_ms or '0')
  if r.model ~= '' then redis.call('HSET', req_key(r.id), 'model', r.model) end
  ids[#ids + 1] = r.id
  entries[#entries + 1] = score
  entries[#entries + 1] = r.id
  if output.known then redis.call('HSET', var_key(r.output), 'producer', r.id) end
  if failed then
    doomed[#doomed + 1] = {r.id, failed}
    output.state, output.error = 'error', failed
    return
  end
  if output.objective then objectives[#objectives + 1] = r.output .. ' ' .. output.objective end
  specs[#specs + 1] = r.spec
  states[#states + 1] = r.id .. ':1:' .. state
  if need == '0' then at_once[#at_once + 1] = states[#states] end
end

for _, v in ipairs(variables) do apply_variable(v) end
for _, vid in ipairs(stubs) do apply_stub(vid) end
for i, r in ipairs(requests) do
  if not r.known then apply_request(r, int(now_us + i)) end
end
in_parts('SADD', sess_key(sid) .. ':ids', ids)
in_parts('ZADD', prefix .. 'live', entries)
if num_requests > 0 then redis.call('HINCRBY', sess_key(sid), 'live', num_requests) end
redis.call('ZADD', prefix .. 'sessions', now + SESSION_TTL_MS, sid)
for _, r in ipairs(doomed) do kill(r[1], 'dead', r[2]) end
settle()
if #set_late > 0 then hint('resolved', 'variables', joined(set_late), 'done', '', 'ready', '') end
hint('submitted', 'session', sid, 'tenant', tenant, 'batch', batch, 'last', last,
  'specs', '[' .. table.concat(specs, ',') .. ']', 'states', joined(states), 'inputs', joined(resolved),
  'objectives', table.concat(objectives, '\n'))
hint_ready()
if last == '1' then by_lane(at_once) end
if num_requests > 0 then event('submitted', batch, 'session', sid, 'requests', num_requests) end
return {'ok', num_requests}
