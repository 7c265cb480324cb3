-- What every script begins with. KEYS[1] is the partition's epoch key, "<prefix>epoch"; no other slot is touched.
-- The constants above (LEASE_MS, UNITS, ...) are the deployment's StoreSettings.
local prefix = string.sub(KEYS[1], 1, -6)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- What this run did to requests, as "id:rev" pairs for the scheduler's hint.
local ready, dead = {}, {}
-- Variables that were resolved and whose waiters are still to be served, and how many may be served in this run.
local unserved, units = {}, UNITS

local function sess_key(id) return prefix .. 'sess:' .. id end
local function var_key(id) return prefix .. 'var:' .. id end
local function req_key(id) return prefix .. 'req:' .. id end
local function eng_key(id) return prefix .. 'eng:' .. id end
local function val_key(vid, fence) return prefix .. 'val:' .. vid .. ':' .. fence end

local function err(kind, culprit, message, retry_after_ms)
  return {'error', kind, culprit, message, tostring(retry_after_ms or 1000)}
end

local function hint(...)
  redis.call('XADD', prefix .. 'intake', '*', 'kind', ...)
end

local function event(kind, id, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', EVENTS_MAX, '*', 'event', kind, 'id', id, ...)
end

local function words(text)
  local list = {}
  for word in string.gmatch(text or '', '%S+') do list[#list + 1] = word end
  return list
end

local function record(kind, message, request, engine, attempts)
  return '{"kind":"' .. kind .. '","message":' .. cjson.encode(message) .. ',"request":"' .. (request or '') ..
    '","engine":"' .. (engine or '') .. '","attempts":' .. (attempts or 0) .. '}'
end

-- A message for an engine, and an empty entry in its queue that wakes the blocking read.
local function control(engine, kind, request, fence, text)
  if redis.call('EXISTS', eng_key(engine) .. ':q') == 0 then return end
  redis.call('XADD', eng_key(engine) .. ':c', 'MAXLEN', '~', 10000, '*',
    'kind', kind, 'request', request, 'fence', fence or '', 'text', text or '')
  redis.call('XADD', eng_key(engine) .. ':q', '*', 'control', kind)
end

local function is_stale_epoch(epoch)
  return tonumber(redis.call('GET', KEYS[1]) or 0) > tonumber(epoch)
end

local function fenced_epoch(epoch)
  return err('Fenced', epoch, 'epoch ' .. epoch .. ' is over: another scheduler leads')
end

-- Ready -----------------------------------------------------------------------------------------------------------

local function make_ready(rid)
  redis.call('HSET', req_key(rid), 'state', 'ready', 'ready_ms', now, 'engine', '')
  ready[#ready + 1] = rid .. ':' .. redis.call('HINCRBY', req_key(rid), 'rev', 1)
end

-- Resolving a variable --------------------------------------------------------------------------------------------

-- After a variable's hash was written: wake waiters, tell importers, and note that consumers are to be served.
local function announce(vid, session, streamed)
  local key = var_key(vid)
  redis.call('HSET', key, 'ready_ms', now)
  redis.call('HINCRBY', key, 'rev', 1)
  if streamed then
    redis.call('XADD', key .. ':tokens', '*', 'last', '1')
    redis.call('PEXPIRE', key .. ':tokens', TOKENS_TTL_MS)
  end
  if session and session ~= '' then redis.call('PUBLISH', prefix .. 'ch:' .. session, vid) end
  redis.call('PUBLISH', prefix .. 'ch:v:' .. vid, vid)
  local importers = redis.call('SMEMBERS', key .. ':remote')
  if #importers > 0 then
    redis.call('XADD', prefix .. 'outbox', '*', 'variable', vid, 'importers', table.concat(importers, ' '))
    redis.call('DEL', key .. ':remote')
    hint('outbox', 'variable', vid)
  end
  unserved[#unserved + 1] = vid
end

local function set_value(vid, text, fence, size, digest, token_ids, tokens_by)
  local key = var_key(vid)
  if fence ~= '' then
    redis.call('PERSIST', val_key(vid, fence))
    redis.call('HSET', key, 'value_fence', fence)
  else
    redis.call('HSET', key, 'value', text)
  end
  redis.call('HSET', key, 'state', 'ready', 'size_bytes', size, 'digest', digest)
  if token_ids ~= '' then redis.call('HSET', key, 'token_ids', token_ids, 'tokens_by', tokens_by) end
  local facts = redis.call('HMGET', key, 'session', 'stream')
  announce(vid, facts[1], facts[2] == '1')
end

local function set_error(vid, error_json)
  local key = var_key(vid)
  local facts = redis.call('HMGET', key, 'state', 'session', 'stream')
  if facts[1] ~= 'pending' then return end
  redis.call('HSET', key, 'state', 'error', 'error', error_json)
  announce(vid, facts[2], facts[3] == '1')
end

-- Finishing a request ---------------------------------------------------------------------------------------------

-- Shrinks it to a tombstone: what explains it stays, what runs it goes. Returns its new revision.
local function finish(rid, state)
  local key = req_key(rid)
  redis.call('HSET', key, 'state', state, 'done_ms', now)
  redis.call('HDEL', key, 'spec', 'need')
  redis.call('PEXPIRE', key, TOMBSTONE_MS)
  redis.call('ZREM', prefix .. 'live', rid)
  redis.call('ZREM', prefix .. 'leases', rid)
  redis.call('ZREM', prefix .. 'delayed', rid)
  local session = redis.call('HGET', key, 'session')
  if redis.call('HEXISTS', sess_key(session), 'live') == 1 then
    redis.call('HINCRBY', sess_key(session), 'live', -1)
  end
  return redis.call('HINCRBY', key, 'rev', 1)
end

-- Ends a request for good; its output gets the error. An engine that has it is told.
local function kill(rid, state, error_json)
  local facts = redis.call('HMGET', req_key(rid), 'state', 'output', 'engine', 'fence', 'attempt')
  if not facts[1] or facts[1] == 'done' or facts[1] == 'dead' or facts[1] == 'cancelled' then return false end
  if facts[1] == 'queued' or facts[1] == 'running' then control(facts[3], 'cancel', rid, facts[4]) end
  redis.call('HSET', req_key(rid), 'error', error_json)
  dead[#dead + 1] = rid .. ':' .. finish(rid, state)
  event(state, rid, 'error', error_json)
  if state == 'dead' and tonumber(facts[5]) > 0 then
    redis.call('XADD', prefix .. 'dead', 'MAXLEN', '~', 100000, '*',
      'request', rid, 'engine', facts[3] or '', 'attempts', facts[5], 'error', error_json)
  end
  set_error(facts[2], error_json)
  return true
end

-- Serves the waiters of resolved variables, at most UNITS in one run; the rest goes to the work stream.
local function serve()
  while #unserved > 0 and units > 0 do
    local vid = unserved[#unserved]
    local wait = var_key(vid) .. ':wait'
    local waiters = redis.call('ZRANGE', wait, 0, units - 1)
    if #waiters == 0 then
      unserved[#unserved] = nil
    else
      redis.call('ZREMRANGEBYRANK', wait, 0, #waiters - 1)
      units = units - #waiters
      local facts = redis.call('HMGET', var_key(vid), 'state', 'error')
      for _, rid in ipairs(waiters) do
        if redis.call('HGET', req_key(rid), 'state') == 'waiting' then
          if facts[1] == 'error' then
            kill(rid, 'dead', facts[2])
          elseif redis.call('HINCRBY', req_key(rid), 'need', -1) == 0 then
            make_ready(rid)
          end
        end
      end
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

local function joined(list) return table.concat(list, ' ') end

-- Giving a request back -------------------------------------------------------------------------------------------

local function gave_up(rid, message, engine, attempts)
  kill(rid, 'dead', record('EngineFailed', message, rid, engine, attempts))
end

-- A dispatch that never started: not an attempt, but bounded.
local function undispatch(rid, engine)
  local count = redis.call('HINCRBY', req_key(rid), 'undispatches', 1)
  redis.call('ZREM', prefix .. 'leases', rid)
  if count > MAX_UNDISPATCHES then
    gave_up(rid, 'request ' .. rid .. ' was queued ' .. count .. ' times and never started; see the engines\' logs',
      engine, redis.call('HGET', req_key(rid), 'attempt'))
  else
    make_ready(rid)
    event('released', rid, 'engine', engine)
  end
end

-- A started attempt that was lost with its engine.
local function redeliver(rid)
  local facts = redis.call('HMGET', req_key(rid), 'attempt', 'engine')
  redis.call('ZREM', prefix .. 'leases', rid)
  if tonumber(facts[1]) >= MAX_ATTEMPTS then
    gave_up(rid, 'request ' .. rid .. ' was lost with its engine ' .. facts[1] .. ' times, the last one was ' ..
      facts[2] .. '; see its log, and raise max_attempts if engines are restarted often', facts[2], facts[1])
  else
    make_ready(rid)
    event('redelivered', rid, 'engine', facts[2], 'attempt', facts[1])
  end
end

