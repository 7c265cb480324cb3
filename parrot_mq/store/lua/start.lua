-- start(engine, group, (entry, request, fence)*): claims assignments and removes their stream entries.
-- Answers for each {} or {request, fence, attempt, session, tenant, spec, streamed, published ids, inputs}, where an
-- input is {id, text, reference, token_ids, tokens_by}.
local engine, group = ARGV[1], ARGV[2]
local queue = eng_key(engine) .. ':q'

-- The output tokens that earlier attempts published, without repeats.
local function published(vid)
  local ids, count = {}, 0
  for _, entry in ipairs(redis.call('XRANGE', var_key(vid) .. ':tokens', '-', '+')) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    local at = tonumber(fields.offset or 0)
    for _, id in ipairs(words(fields.ids)) do
      if at == count then
        count = count + 1
        ids[count] = id
      end
      at = at + 1
    end
  end
  return joined(ids)
end

-- An input as the engine gets it; nil if it was deleted with its session.
local function input_of(vid, call)
  local v = redis.call('HMGET', var_key(vid), 'value', 'value_fence', 'token_ids', 'tokens_by', 'raw', 'raw_fence', 'raw_call')
  if not v[1] and not v[2] then return nil end
  -- Within one call the continuation sees the raw output.
  if v[7] and v[7] == call then
    if v[5] then return {vid, v[5], '', '', ''} end
    return {vid, '', val_key(vid, v[6] .. '.raw'), '', ''}
  end
  return {vid, v[1] or '', v[2] and val_key(vid, v[2]) or '', v[3] or '', v[4] or ''}
end

-- Takes the lease; answers the claim, or {} for what is not ours (any more) or cannot be run.
local function claim(rid, fence)
  local key = req_key(rid)
  local r = redis.call('HMGET', key, 'state', 'fence', 'session', 'tenant', 'spec', 'output', 'inputs', 'call', 'attempt',
    'rev')
  if r[2] ~= fence or (r[1] ~= 'queued' and r[1] ~= 'running') then return {} end
  local inputs = {}
  for i, vid in ipairs(words(r[7])) do
    inputs[i] = input_of(vid, r[8])
    if not inputs[i] then
      kill(rid, 'dead', record('Expired', 'input ' .. vid .. ' of request ' .. rid .. ' was deleted with its session', rid))
      return {}
    end
  end
  local attempt = r[9]
  if r[1] == 'queued' then
    attempt = string.format('%d', tonumber(attempt) + 1)
    redis.call('HSET', key, 'state', 'running', 'started_ms', now, 'attempt', attempt, 'rev', tonumber(r[10]) + 1)
    event('started', rid, 'engine', engine)
  end
  redis.call('ZADD', prefix .. 'leases', now + LEASE_MS, rid)
  local streamed = redis.call('HGET', var_key(r[6]), 'stream') or ''
  return {rid, fence, attempt, r[3], r[4], r[5], streamed, (streamed == '1') and published(r[6]) or '', inputs}
end

local claims = {}
for i = 3, #ARGV, 3 do
  redis.call('XACK', queue, group, ARGV[i])
  redis.call('XDEL', queue, ARGV[i])
  claims[#claims + 1] = claim(ARGV[i + 1], ARGV[i + 2])
end
settle()
hint_ready()
return {'ok', claims}
