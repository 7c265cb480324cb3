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

local claims = {}
for i = 3, #ARGV, 3 do
  local entry, rid, fence = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local key = req_key(rid)
  local r = redis.call('HMGET', key, 'state', 'fence', 'session', 'tenant', 'spec', 'output', 'inputs', 'call')
  redis.call('XACK', queue, group, entry)
  redis.call('XDEL', queue, entry)
  local claim = {}
  if r[2] == fence and (r[1] == 'queued' or r[1] == 'running') then
    if r[1] == 'queued' then
      redis.call('HSET', key, 'state', 'running', 'started_ms', now)
      redis.call('HINCRBY', key, 'attempt', 1)
      redis.call('HINCRBY', key, 'rev', 1)
      event('started', rid, 'engine', engine)
    end
    redis.call('ZADD', prefix .. 'leases', now + LEASE_MS, rid)
    local attempt = redis.call('HGET', key, 'attempt')
    local inputs = {}
    for j, vid in ipairs(words(r[7])) do
      local v = redis.call('HMGET', var_key(vid), 'value', 'value_fence', 'token_ids', 'tokens_by', 'raw', 'raw_fence',
        'raw_call')
      -- Within one call the continuation sees the raw output.
      local raw = v[7] and v[7] == r[8]
      local text, reference = v[1] or '', ''
      if raw and v[5] then
        text = v[5]
      elseif raw and v[6] then
        text, reference = '', val_key(vid, v[6] .. '.raw')
      elseif v[2] then
        text, reference = '', val_key(vid, v[2])
      end
      inputs[j] = {vid, text, reference, (not raw) and v[3] or '', (not raw) and v[4] or ''}
    end
    local streamed = redis.call('HGET', var_key(r[6]), 'stream') or ''
    claim = {rid, fence, attempt, r[3], r[4], r[5], streamed, (streamed == '1') and published(r[6]) or '', inputs}
  end
  claims[#claims + 1] = claim
end
return {'ok', claims}
