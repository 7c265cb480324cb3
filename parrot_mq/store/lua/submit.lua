-- submit(session, batch, last,
--        F, (digest, name, segments)*F,
--        V, (id, name, has_value, text, fence, size, digest)*V,
--        R, (id, call, function_name, output, spec, digest, I, input*I)*R)
-- Validates all of it, then applies all of it. Requests come in topological order.
local sid, batch, last = ARGV[1], ARGV[2], ARGV[3]
local session = redis.call('HMGET', sess_key(sid), 'tenant', 'state', 'live')
if not session[1] then
  return err('UnknownSession', sid, 'session ' .. sid .. ' does not exist or has expired; open a new one')
end
local tenant = session[1]

local at = 4
local function take()
  at = at + 1
  return ARGV[at - 1]
end

local functions, variables, requests = {}, {}, {}
for i = 1, tonumber(take()) do functions[i] = {digest = take(), name = take(), segments = take()} end
for i = 1, tonumber(take()) do
  variables[i] = {id = take(), name = take(), has_value = take() == '1', text = take(), fence = take(), size = take(),
    digest = take()}
end
for i = 1, tonumber(take()) do
  local request = {id = take(), call = take(), name = take(), output = take(), spec = take(), digest = take(),
    inputs = {}}
  for j = 1, tonumber(take()) do request.inputs[j] = take() end
  requests[i] = request
end

-- Validation: nothing is written here. -----------------------------------------------------------------------------

local fresh = {}      -- variables that this call creates or gives a value to
local facts = {}      -- what is known of each variable: {state, digest, size}
for _, v in ipairs(variables) do
  if fresh[v.id] then return err('Conflict', v.id, 'variable ' .. v.id .. ' is in the submit twice') end
  local old = redis.call('HMGET', var_key(v.id), 'session', 'state', 'digest', 'producer', 'size_bytes')
  if old[2] then
    if old[1] ~= sid then return err('Conflict', v.id, 'variable ' .. v.id .. ' exists in another session') end
    if v.has_value and old[4] then
      return err('AlreadyProduced', v.id, 'variable ' .. v.id .. ' has a producer (' .. old[4] .. '), it cannot be set')
    end
    if v.has_value and old[2] ~= 'pending' and old[3] ~= v.digest then
      return err('AlreadySet', v.id, 'variable ' .. v.id .. ' has another value already; a variable is set once')
    end
    v.known, v.set = true, v.has_value and old[2] == 'pending'
    facts[v.id] = {old[2], old[3] or '', old[5] or '0'}
  end
  if v.has_value and (not old[2] or v.set) then
    if v.fence ~= '' and redis.call('EXISTS', val_key(v.id, v.fence)) == 0 then
      return err('StagedValueLost', v.id, 'the staged value of ' .. v.id .. ' is gone; stage it again')
    end
    facts[v.id] = {'ready', v.digest, v.size}
  end
  facts[v.id] = facts[v.id] or {'pending', '', '0'}
  fresh[v.id] = true
end

local function look_up(vid)
  if not facts[vid] then
    local found = redis.call('HMGET', var_key(vid), 'state', 'digest', 'size_bytes', 'tenant', 'error', 'producer')
    if not found[1] or found[4] ~= tenant then return nil end
    facts[vid] = {found[1], found[2] or '', found[3] or '0', found[5], found[6]}
  end
  return facts[vid]
end

local own = string.match(sid, '^(%d+)-')
local later, seen, stubs, num_new = {}, {}, {}, 0
for _, r in ipairs(requests) do
  if seen[r.id] then return err('Conflict', r.id, 'request ' .. r.id .. ' is in the submit twice') end
  if later[r.output] then
    return err('AlreadyProduced', r.output, 'variable ' .. r.output .. ' has two producers: ' .. later[r.output] ..
      ' and ' .. r.id)
  end
  seen[r.id], later[r.output] = true, r.id
end

-- Whether a request downstream of `output` has one of `inputs` as its output: the edge would close a cycle.
local function closes_cycle(output, inputs)
  local targets, stack, visited, steps = {}, {output}, {}, 0
  for _, vid in ipairs(inputs) do targets[vid] = true end
  if targets[output] then return output end
  while #stack > 0 do
    local vid = table.remove(stack)
    if not visited[vid] then
      visited[vid], steps = true, steps + 1
      for _, rid in ipairs(redis.call('ZRANGE', var_key(vid) .. ':wait', 0, -1)) do
        local out = redis.call('HGET', req_key(rid), 'output')
        if out then
          if targets[out] then return out end
          stack[#stack + 1] = out
        end
      end
    end
  end
  return nil
end

for _, r in ipairs(requests) do
  local old = redis.call('HGET', req_key(r.id), 'digest')
  if old then
    if old ~= r.digest then
      return err('Conflict', r.id, 'request ' .. r.id .. ' exists with other content; ids are used once')
    end
    r.known = true
  else
    num_new = num_new + 1
    for _, vid in ipairs(r.inputs) do
      if vid == r.output then
        return err('CycleError', vid, 'request ' .. r.id .. ' (' .. r.name .. ') reads its own output ' .. vid)
      end
      if later[vid] then
        return err('CycleError', vid, 'request ' .. r.id .. ' (' .. r.name .. ') reads ' .. vid ..
          ', which a later request of the same submit produces: a cycle, or the order is not topological')
      end
      if not look_up(vid) then
        local home = string.match(vid, '^(%d+)%-v%-')
        if home and home ~= own then
          stubs[vid], facts[vid] = true, {'pending', '', '0'}
        else
          return err('UnknownVariable', vid, 'input ' .. vid .. ' of request ' .. r.id .. ' (' .. r.name ..
            ') does not exist: it was never submitted, or its session has expired')
        end
      end
    end
    local output = look_up(r.output)
    if not output or string.match(r.output, '^(%d+)%-v%-') ~= own then
      return err('UnknownVariable', r.output, 'output ' .. r.output .. ' of request ' .. r.id .. ' does not exist here')
    end
    if output[5] then
      return err('AlreadyProduced', r.output, 'variable ' .. r.output .. ' has a producer already: ' .. output[5])
    end
    if output[1] ~= 'pending' then
      return err('AlreadySet', r.output, 'variable ' .. r.output .. ' is ' .. output[1] .. ' already, nothing can produce it')
    end
    if redis.call('EXISTS', var_key(r.output) .. ':wait') == 1 then
      local through = closes_cycle(r.output, r.inputs)
      if through then
        return err('CycleError', r.output, 'request ' .. r.id .. ' (' .. r.name .. ') would close a cycle: its output ' ..
          r.output .. ' leads to its own input ' .. through)
      end
    end
  end
  later[r.output] = nil
end

if session[2] ~= 'open' and num_new > 0 then
  return err('SessionClosed', sid, 'session ' .. sid .. ' is closed and takes no more work; open a new one')
end
if tonumber(session[3]) + num_new > MAX_SESSION_LIVE then
  return err('Overloaded', sid, 'session ' .. sid .. ' has ' .. session[3] .. ' unfinished requests, the limit is ' ..
    MAX_SESSION_LIVE .. ' (max_session_requests)', 1000)
end
local live = redis.call('ZCARD', prefix .. 'live')
if live + num_new > MAX_LIVE then
  return err('Overloaded', sid, live .. ' requests are unfinished, the limit is ' .. MAX_LIVE ..
    ' (max_live_requests)', 2000)
end

-- Application ------------------------------------------------------------------------------------------------------

for _, f in ipairs(functions) do
  redis.call('HSETNX', prefix .. 'fn:' .. tenant .. ':' .. f.digest, 'segments', f.segments)
  redis.call('HSETNX', prefix .. 'fn:' .. tenant .. ':' .. f.digest, 'name', f.name)
end

local ids = {}
local function own_id(id)
  ids[#ids + 1] = id
  if #ids == 500 then
    redis.call('SADD', sess_key(sid) .. ':ids', unpack(ids))
    ids = {}
  end
end

for _, v in ipairs(variables) do
  if not v.known then
    redis.call('HSET', var_key(v.id), 'session', sid, 'tenant', tenant, 'name', v.name, 'state', 'pending', 'rev', 0,
      'batch', batch, 'created_ms', now)
    own_id(v.id)
  end
  if v.has_value and (not v.known or v.set) then set_value(v.id, v.text, v.fence, v.size, v.digest, '', '') end
  if v.set then
    hint('resolved', 'variable', v.id, 'rev', redis.call('HGET', var_key(v.id), 'rev'), 'digest', v.digest,
      'bytes', v.size, 'error', '', 'request', '', 'ready', '', 'dead', '')
  end
end
for vid in pairs(stubs) do
  if redis.call('EXISTS', var_key(vid)) == 0 then
    redis.call('HSET', var_key(vid), 'session', sid, 'tenant', tenant, 'name', '', 'state', 'pending', 'rev', 0,
      'batch', batch, 'home', string.match(vid, '^(%d+)-'), 'created_ms', now)
    own_id(vid)
  end
  hint('import', 'variable', vid, 'tenant', tenant)
end

local specs, states, resolved, noted, objectives = {}, {}, {}, {}, {}
for i, r in ipairs(requests) do
  if not r.known then
    local need, failed, score = 0, nil, now * 1000 + i % 1000
    for _, vid in ipairs(r.inputs) do
      local f = facts[vid]
      if f[1] == 'pending' then
        need = need + 1
        redis.call('ZADD', var_key(vid) .. ':wait', score, r.id)
      elseif f[1] == 'error' then
        failed = failed or redis.call('HGET', var_key(vid), 'error')
      elseif not noted[vid] then
        noted[vid] = true
        resolved[#resolved + 1] = vid .. ':' .. f[2] .. ':' .. f[3]
      end
    end
    redis.call('HSET', req_key(r.id), 'session', sid, 'tenant', tenant, 'call', r.call, 'function_name', r.name,
      'output', r.output, 'inputs', joined(r.inputs), 'spec', r.spec, 'digest', r.digest, 'batch', batch,
      'state', (need == 0) and 'ready' or 'waiting', 'need', need, 'attempt', 0, 'fence', '', 'rev', 1, 'created_ms', now)
    if need == 0 then redis.call('HSET', req_key(r.id), 'ready_ms', now) end
    redis.call('ZADD', prefix .. 'live', score, r.id)
    redis.call('HSET', var_key(r.output), 'producer', r.id)
    redis.call('HINCRBY', sess_key(sid), 'live', 1)
    own_id(r.id)
    local objective = redis.call('HGET', var_key(r.output), 'objective')
    if objective then objectives[#objectives + 1] = r.output .. ' ' .. objective end
    if failed then
      kill(r.id, 'dead', failed)
      facts[r.output][1] = 'error'
    else
      specs[#specs + 1] = r.spec
      states[#states + 1] = r.id .. ':1:' .. ((need == 0) and 'ready' or 'waiting')
    end
  end
end
if #ids > 0 then redis.call('SADD', sess_key(sid) .. ':ids', unpack(ids)) end
redis.call('ZADD', prefix .. 'sessions', now + SESSION_TTL_MS, sid)
serve()
hint('submitted', 'session', sid, 'tenant', tenant, 'batch', batch, 'last', last,
  'specs', '[' .. table.concat(specs, ',') .. ']', 'states', joined(states), 'inputs', joined(resolved),
  'objectives', table.concat(objectives, '\n'))
if #ready > 0 or #dead > 0 then hint('ready', 'ready', joined(ready), 'dead', joined(dead)) end
if num_new > 0 then event('submitted', batch, 'session', sid, 'requests', num_new) end
return {'ok', num_new}
