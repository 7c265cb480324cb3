-- For scripts that resolve variables or end requests: what follows from that in the graph.

-- What this run did to requests, as "id:rev" pairs for the scheduler's hint.
local ready, dead = {}, {}
-- Variables that were resolved and whose waiters are still to be served, with the errors of those that failed. What
-- serving may cost in this run: a waiter that gets a value is one unit, one that dies by it is two.
local unserved, errors, units = {}, {}, UNITS
-- What `settle` writes for all objects of this run together: by session, how many requests were ended and which
-- variables were resolved; requests that leave the indexes; events.
local ended, resolved_in, unlisted, unleased, events = {}, {}, {}, {}, {}

local FINISHED = {done = true, dead = true, cancelled = true}

local function record(kind, message, request, engine, attempts)
  return '{"kind":"' .. kind .. '","message":' .. cjson.encode(message) .. ',"request":"' .. (request or '') ..
    '","engine":"' .. (engine or '') .. '","attempts":' .. (attempts or 0) .. '}'
end

local function int(number) return string.format('%d', number) end

-- An event with one more field. Objects to which the same happened share one.
local function note(kind, id, name, text)
  local same = events[kind .. text]
  if not same then
    same = {kind, name, text, {}}
    events[kind .. text] = same
  end
  table.insert(same[4], id)
end

-- Takes a request's entry out of its engine's queue.
local function unqueue(engine, entry)
  if not entry then return end
  redis.call('XACK', eng_key(engine) .. ':q', GROUP, entry)
  redis.call('XDEL', eng_key(engine) .. ':q', entry)
end

-- Ready -----------------------------------------------------------------------------------------------------------

-- `rev` is the request's revision so far.
local function make_ready(rid, rev)
  redis.call('HSET', req_key(rid), 'state', 'ready', 'need', '0', 'ready_ms', now_ms, 'engine', '', 'rev', int(rev + 1))
  ready[#ready + 1] = rid .. ':' .. int(rev + 1)
end

-- Resolving a variable --------------------------------------------------------------------------------------------

local function to_be_resolved(vid)
  return redis.call('HMGET', var_key(vid), 'state', 'session', 'stream', 'rev')
end

-- Writes a variable's final state, wakes its readers, tells importers, and notes that consumers are to be served.
-- `known` is what `to_be_resolved` gave.
local function resolve(vid, known, fields)
  local key, rev, n = var_key(vid), tonumber(known[4]) + 1, #fields
  fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'ready_ms', now_ms, 'rev', int(rev)
  redis.call('HSET', key, unpack(fields))
  if known[3] == '1' then
    redis.call('XADD', key .. ':tokens', '*', 'last', '1')
    redis.call('PEXPIRE', key .. ':tokens', TOKENS_TTL_MS)
  end
  redis.call('PUBLISH', prefix .. 'ch:v:' .. vid, vid)
  local siblings = resolved_in[known[2]] or {}
  resolved_in[known[2]], siblings[#siblings + 1] = siblings, vid
  local importers = redis.call('SMEMBERS', key .. ':remote')
  if #importers > 0 then
    redis.call('XADD', prefix .. 'outbox', '*', 'variable', vid, 'importers', joined(importers))
    redis.call('DEL', key .. ':remote')
    hint('outbox', 'variable', vid)
  end
  unserved[#unserved + 1] = vid
end

-- The fields of a value: text in the hash, or (with a fence) staged in its own key, which is kept from here on.
local function value_fields(vid, text, fence, size, digest)
  if fence == '' then return {'state', 'ready', 'size_bytes', size, 'digest', digest, 'value', text} end
  redis.call('PERSIST', val_key(vid, fence))
  return {'state', 'ready', 'size_bytes', size, 'digest', digest, 'value_fence', fence}
end

local function is_staged(vid, fence)
  return fence == '' or redis.call('EXISTS', val_key(vid, fence)) == 1
end

local function staged_value_lost(vid)
  return err('StagedValueLost', vid, 'the staged value of ' .. vid .. ' is gone; stage it again')
end

local function set_error(vid, error_json)
  local known = to_be_resolved(vid)
  if known[1] == 'pending' then
    errors[vid] = error_json
    resolve(vid, known, {'state', 'error', 'error', error_json})
  end
end

-- Finishing a request ---------------------------------------------------------------------------------------------

local function to_be_finished(rid)
  local r = redis.call('HMGET', req_key(rid), 'state', 'session', 'rev', 'need', 'output', 'engine', 'fence', 'attempt',
    'entry', 'call')
  return {state = r[1], session = r[2], rev = r[3], need = r[4], output = r[5], engine = r[6], fence = r[7],
    attempt = r[8], entry = r[9], call = r[10]}
end

-- Shrinks it to a tombstone: what explains it stays, what runs it goes. `r` is what `to_be_finished` gave, and
-- `name`, `text` a field to write with it. Returns "id:rev".
local function finish(rid, r, state, name, text)
  local key, rev = req_key(rid), int(r.rev + 1)
  redis.call('HSET', key, 'state', state, 'done_ms', now_ms, 'rev', rev, name, text)
  redis.call('HDEL', key, 'spec', 'need', 'entry')
  redis.call('PEXPIRE', key, TOMBSTONE_MS)
  unlisted[#unlisted + 1] = rid
  if r.state == 'running' then
    unleased[#unleased + 1] = rid
  elseif r.state == 'waiting' and r.need == '0' then
    redis.call('ZREM', prefix .. 'delayed', rid)
  elseif r.state == 'queued' then
    unqueue(r.engine, r.entry)
  end
  ended[r.session] = (ended[r.session] or 0) + 1
  return rid .. ':' .. rev
end

-- Ends a request for good; its output gets the error. An engine that has it is told, unless it is the one that asks.
local function kill(rid, state, error_json, engine_knows)
  local r = to_be_finished(rid)
  if not r.state or FINISHED[r.state] then return false end
  if not engine_knows and (r.state == 'queued' or r.state == 'running') then
    control(r.engine, 'cancel', rid, r.fence)
  end
  dead[#dead + 1] = finish(rid, r, state, 'error', error_json)
  note(state, rid, 'error', error_json)
  if state == 'dead' and tonumber(r.attempt) > 0 then
    redis.call('XADD', prefix .. 'dead', 'MAXLEN', '~', 100000, '*',
      'request', rid, 'engine', r.engine or '', 'attempts', r.attempt, 'error', error_json)
  end
  set_error(r.output, error_json)
  return true
end

-- A variable that was resolved in an earlier run, and has waiters left.
local function serve_rest_of(vid)
  errors[vid] = redis.call('HGET', var_key(vid), 'error') or nil
  unserved[#unserved + 1] = vid
end

-- One waiter of a resolved variable: an input less to wait for, or the input's error.
local function serve_one(rid, error_json)
  if error_json then
    kill(rid, 'dead', error_json)
    return
  end
  local r = redis.call('HMGET', req_key(rid), 'state', 'need', 'rev')
  if r[1] ~= 'waiting' then return end
  local need = tonumber(r[2]) - 1
  if need == 0 then make_ready(rid, tonumber(r[3])) else redis.call('HSET', req_key(rid), 'need', int(need)) end
end

-- Serves the waiters of resolved variables, for UNITS in one run; the rest goes to the work stream.
local function serve()
  while #unserved > 0 and units > 0 do
    local vid = table.remove(unserved)
    local error_json, wait = errors[vid], var_key(vid) .. ':wait'
    local price = error_json and 2 or 1
    local count = math.ceil(units / price)
    local waiters = redis.call('ZRANGE', wait, '0', int(count - 1))
    if #waiters > 0 then
      redis.call('ZREMRANGEBYRANK', wait, '0', int(#waiters - 1))
      if #waiters == count then unserved[#unserved + 1] = vid end
      units = units - price * #waiters
      for _, rid in ipairs(waiters) do serve_one(rid, error_json) end
    end
  end
  for _, vid in ipairs(unserved) do
    if redis.call('EXISTS', var_key(vid) .. ':wait') == 1 then
      redis.call('XADD', prefix .. 'work', '*', 'variable', vid)
      hint('work', 'variable', vid)
    end
  end
  unserved = {}
end

-- Every script that resolves or ends anything calls this last.
local function settle()
  serve()
  in_parts('ZREM', prefix .. 'live', unlisted)
  in_parts('ZREM', prefix .. 'leases', unleased)
  for session, count in pairs(ended) do
    if redis.call('HEXISTS', sess_key(session), 'live') == 1 then
      redis.call('HINCRBY', sess_key(session), 'live', -count)
    end
  end
  for session, vids in pairs(resolved_in) do redis.call('PUBLISH', prefix .. 'ch:' .. session, joined(vids)) end
  for _, e in pairs(events) do event(e[1], joined(e[4]), e[2], e[3]) end
  ended, resolved_in, unlisted, unleased, events = {}, {}, {}, {}, {}
end

-- Tells the scheduler what became of requests, if anything did.
local function hint_ready()
  if #ready > 0 or #dead > 0 then hint('ready', 'ready', joined(ready), 'dead', joined(dead)) end
end

-- Giving a request back -------------------------------------------------------------------------------------------

local function gave_up(rid, message, engine, attempts)
  kill(rid, 'dead', record('EngineFailed', message, rid, engine, attempts))
end

-- A dispatch that never started: not an attempt, but bounded.
local function undispatch(rid, engine)
  local r = redis.call('HMGET', req_key(rid), 'undispatches', 'rev', 'entry', 'engine')
  local count = tonumber(r[1] or 0) + 1
  unleased[#unleased + 1] = rid
  redis.call('HSET', req_key(rid), 'undispatches', count)
  if count > MAX_UNDISPATCHES then
    gave_up(rid, 'request ' .. rid .. ' was queued ' .. count .. ' times and never started; see the engines\' logs',
      engine, redis.call('HGET', req_key(rid), 'attempt'))
  else
    unqueue(r[4], r[3])
    make_ready(rid, tonumber(r[2]))
    note('released', rid, 'engine', engine)
  end
end

-- A started attempt that was lost with its engine.
local function redeliver(rid)
  local r = redis.call('HMGET', req_key(rid), 'attempt', 'engine', 'rev')
  unleased[#unleased + 1] = rid
  if tonumber(r[1]) >= MAX_ATTEMPTS then
    gave_up(rid, 'request ' .. rid .. ' was lost with its engine ' .. r[1] .. ' times, the last one was ' ..
      r[2] .. '; see its log, and raise max_attempts if engines are restarted often', r[2], r[1])
  else
    make_ready(rid, tonumber(r[3]))
    event('redelivered', rid, 'engine', r[2], 'attempt', r[1])
  end
end

