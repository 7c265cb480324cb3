-- submit(session, batch, last,
--        F, (digest, name, segments)*F,
--        V, (id, name, has_value, text, fence, size, digest, objective)*V,
--        R, (id, call, function_name, model, output, spec, digest, I, input*I)*R)
-- Validates all of it, then applies all of it (submit.lua). Requests come in topological order.
-- This first half writes nothing.
local sid, batch, last = ARGV[1], ARGV[2], ARGV[3]
local session = redis.call('HMGET', sess_key(sid), 'tenant', 'state', 'live')
if not session[1] then
  return err('UnknownSession', sid, 'session ' .. sid .. ' does not exist or has expired; open a new one')
end
local tenant, own = session[1], string.match(sid, '^(%d+)%-')

local at = 4
local function take()
  at = at + 1
  return ARGV[at - 1]
end

local functions, variables, requests = {}, {}, {}
for i = 1, tonumber(take()) do functions[i] = {digest = take(), name = take(), segments = take()} end
for i = 1, tonumber(take()) do
  local id, name, has_value, text, fence, size, digest, objective = unpack(ARGV, at, at + 7)
  at = at + 8
  variables[i] = {id = id, name = name, has_value = has_value == '1', text = text, fence = fence, size = size,
    digest = digest, objective = objective}
end
for i = 1, tonumber(take()) do
  local id, call, name, model, output, spec, digest, num_inputs = unpack(ARGV, at, at + 7)
  at = at + 8
  local listed, inputs = {}, {}
  for _ = 1, tonumber(num_inputs) do
    local vid = take()
    if not listed[vid] then
      listed[vid] = true
      inputs[#inputs + 1] = vid
    end
  end
  requests[i] = {id = id, call = call, name = name, model = model, output = output, spec = spec, digest = digest,
    inputs = inputs}
end

local facts = {}      -- what is known of each variable, as it will be once this call's values are set
local num_new = 0     -- new objects that a closed session does not take

local function read(vid)
  local v = redis.call('HMGET', var_key(vid), 'state', 'digest', 'size_bytes', 'tenant', 'error', 'producer', 'objective',
    'session', 'home')
  if not v[1] then return nil end
  return {state = v[1], digest = v[2] or '', size = v[3] or '0', tenant = v[4], error = v[5], producer = v[6],
    objective = v[7], session = v[8], home = v[9], known = true}
end

-- Whether any of these objects exists. Nearly always none does: then one command tells it of all.
local function any_exists(objects, key_of)
  local keys = {}
  for i, object in ipairs(objects) do keys[i] = key_of(object.id) end
  for i = 1, #keys, 500 do
    if redis.call('EXISTS', unpack(keys, i, math.min(i + 499, #keys))) > 0 then return true end
  end
  return false
end
local any_variable, any_request = any_exists(variables, var_key), any_exists(requests, req_key)

-- Answers an error, or nothing.
local function check_variable(v)
  if facts[v.id] then return err('Conflict', v.id, 'variable ' .. v.id .. ' is in the submit twice') end
  if string.match(v.id, '^(%d+)%-v%-.') ~= own then
    return err('BadType', v.id, "'" .. v.id .. "' is no variable id of this session's partition (like '" .. own .. "-v-3kf9a')")
  end
  local old = any_variable and read(v.id) or nil
  if old then
    v.known = true
    if old.session ~= sid then
      return err('Conflict', v.id, 'variable ' .. v.id .. ' exists in another session')
    end
    if v.has_value and old.producer then
      return err('AlreadyProduced', v.id, 'variable ' .. v.id .. ' has a producer (' .. old.producer .. '), it cannot be set')
    end
    if v.has_value and old.state ~= 'pending' and old.digest ~= v.digest then
      return err('AlreadySet', v.id, 'variable ' .. v.id .. ' has another value already; a variable is set once')
    end
    v.sets = v.has_value and old.state == 'pending'
  else
    num_new = num_new + 1
    v.sets = v.has_value
  end
  local fact = old or {state = 'pending', digest = '', size = '0', tenant = tenant}
  if v.sets then
    if not is_staged(v.id, v.fence) then return staged_value_lost(v.id) end
    fact.state, fact.digest, fact.size = 'ready', v.digest, v.size
  end
  facts[v.id] = fact
end

for _, v in ipairs(variables) do
  local refused = check_variable(v)
  if refused then return refused end
end

-- A variable of this tenant, or nil.
local function look_up(vid)
  if facts[vid] == nil then
    local found = read(vid)
    facts[vid] = found and found.tenant == tenant and found or false
  end
  return facts[vid] or nil
end

local reads = {}      -- outputs of this call's requests, by the variables that they read

-- Whether a request downstream of `output` produces one of `inputs`: the new edge would close a cycle, whose variables
-- are returned as text. Only what is pending can be on it.
local function closes_cycle(output, inputs)
  local targets, num_targets, stack, came = {}, 0, {output}, {[output] = ''}
  for _, vid in ipairs(inputs) do
    if facts[vid].state == 'pending' then targets[vid], num_targets = true, num_targets + 1 end
  end
  local function follow(vid, out)
    if out and came[out] == nil then
      came[out] = vid
      stack[#stack + 1] = out
    end
    return out and targets[out]
  end
  local function path(vid)
    local names = {}
    while vid ~= '' and #names < 20 do
      table.insert(names, 1, vid)
      vid = came[vid]
    end
    return table.concat(names, ' -> ')
  end
  while num_targets > 0 and #stack > 0 do
    local vid = table.remove(stack)
    for _, out in ipairs(reads[vid] or {}) do
      if follow(vid, out) then return path(out) end
    end
    for _, rid in ipairs(redis.call('ZRANGE', var_key(vid) .. ':wait', 0, -1)) do
      local out = redis.call('HGET', req_key(rid), 'output')
      if follow(vid, out) then return path(out) end
    end
  end
  return nil
end

local later, seen, stubs, num_requests = {}, {}, {}, 0
for _, r in ipairs(requests) do
  if seen[r.id] then return err('Conflict', r.id, 'request ' .. r.id .. ' is in the submit twice') end
  if later[r.output] then
    return err('AlreadyProduced', r.output, 'variable ' .. r.output .. ' has two producers: ' .. later[r.output] ..
      ' and ' .. r.id)
  end
  seen[r.id], later[r.output] = true, r.id
end

local function check_input(r, vid)
  if vid == r.output then
    return err('CycleError', vid, 'request ' .. r.id .. ' (' .. r.name .. ') reads its own output ' .. vid)
  end
  if later[vid] then
    return err('CycleError', vid, 'request ' .. r.id .. ' (' .. r.name .. ') reads ' .. vid ..
      ', which a later request of the same submit produces: a cycle, or the order is not topological')
  end
  local input = look_up(vid)
  if not input then
    local home = string.match(vid, '^(%d+)%-v%-.')
    local other = redis.call('HMGET', var_key(vid), 'home', 'state')
    -- Another tenant that was refused the variable leaves a stub with the error behind; it is in nobody's way.
    local in_the_way = other[2] and
      not (other[1] and other[2] == 'error' and redis.call('EXISTS', var_key(vid) .. ':wait') == 0)
    if not home or home == own or in_the_way then
      return err('UnknownVariable', vid, 'input ' .. vid .. ' of request ' .. r.id .. ' (' .. r.name ..
        ') does not exist: it was never submitted, or its session has expired')
    end
    facts[vid] = {state = 'pending', digest = '', size = '0', home = home, noted = true}
    stubs[#stubs + 1] = vid
  elseif input.home and not input.noted then
    input.noted = true
    stubs[#stubs + 1] = vid
  end
end

local function check_output(r)
  local output = look_up(r.output)
  if not output or output.home then
    return err('UnknownVariable', r.output, 'output ' .. r.output .. ' of request ' .. r.id .. ' does not exist here')
  end
  if output.producer then
    return err('AlreadyProduced', r.output, 'variable ' .. r.output .. ' has a producer already: ' .. output.producer)
  end
  if output.state ~= 'pending' then
    return err('AlreadySet', r.output, 'variable ' .. r.output .. ' is ' .. output.state .. ' already, nothing can produce it')
  end
  if output.known and redis.call('EXISTS', var_key(r.output) .. ':wait') == 1 then
    local through = closes_cycle(r.output, r.inputs)
    if through then
      return err('CycleError', r.output, 'request ' .. r.id .. ' (' .. r.name .. ') would close a cycle: it reads what its ' ..
        'own output leads to: ' .. through)
    end
  end
end

for _, r in ipairs(requests) do
  local old = any_request and redis.call('HGET', req_key(r.id), 'digest')
  if old then
    if old ~= r.digest then
      return err('Conflict', r.id, 'request ' .. r.id .. ' exists with other content; ids are used once')
    end
    r.known = true
  else
    if string.match(r.id, '^(%d+)%-r%-.') ~= own then
      return err('BadType', r.id, "'" .. r.id .. "' is no request id of this session's partition (like '" .. own .. "-r-3kf9a')")
    end
    num_new, num_requests = num_new + 1, num_requests + 1
    local refused
    for _, vid in ipairs(r.inputs) do refused = refused or check_input(r, vid) end
    refused = refused or check_output(r)
    if refused then return refused end
    for _, vid in ipairs(r.inputs) do
      reads[vid] = reads[vid] or {}
      table.insert(reads[vid], r.output)
    end
    facts[r.output].producer = r.id
  end
  later[r.output] = nil
end

if session[2] ~= 'open' and num_new > 0 then
  return err('SessionClosed', sid, 'session ' .. sid .. ' is closed and takes no more work; open a new one')
end
if num_requests > 0 and tonumber(session[3]) + num_requests > MAX_SESSION_LIVE then
  return err('Overloaded', sid, 'session ' .. sid .. ' has ' .. session[3] .. ' unfinished requests, the limit is ' ..
    MAX_SESSION_LIVE .. ' (max_session_requests)', 1000)
end
local live = redis.call('ZCARD', prefix .. 'live')
if num_requests > 0 and live + num_requests > MAX_LIVE then
  return err('Overloaded', sid, live .. ' requests are unfinished, the limit is ' .. MAX_LIVE ..
    ' (max_live_requests)', 2000)
end
