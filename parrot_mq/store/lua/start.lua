-- start(engine, group, (entry, request, fence, offered)*): claims assignments and removes their stream entries.
-- Answers for each {} or {attempt, streamed, published ids}, and, unless `offered` is "1" (the queue's entry held it),
-- also session, tenant, spec, inputs, where an input is {id, text, reference, token_ids, tokens_by}.
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

-- The inputs of a request, which is ended if one was deleted with its session (nil).
local function inputs_of(rid, ids, call)
  local inputs = {}
  for i, vid in ipairs(words(ids)) do
    inputs[i] = input_of(vid, call)
    if not inputs[i] then
      kill(rid, 'dead', record('Expired', 'input ' .. vid .. ' of request ' .. rid .. ' was deleted with its session', rid))
      return nil
    end
  end
  return inputs
end

local leases, ends = {}, int(now + LEASE_MS)

-- Takes the lease; answers the claim, or {} for what is not ours (any more) or cannot be run.
local function claim(rid, fence, offered)
  local key = req_key(rid)
  local r = redis.call('HMGET', key, 'state', 'fence', 'attempt', 'rev', 'output')
  if r[2] ~= fence or (r[1] ~= 'queued' and r[1] ~= 'running') then return {} end
  local answer = {'', '', ''}
  if offered ~= '1' then
    local whole = redis.call('HMGET', key, 'session', 'tenant', 'spec', 'inputs', 'call')
    local inputs = inputs_of(rid, whole[4], whole[5])
    if not inputs then return {} end
    answer[4], answer[5], answer[6], answer[7] = whole[1], whole[2], whole[3], inputs
  end
  answer[1] = r[3]
  if r[1] == 'queued' then
    answer[1] = string.format('%d', tonumber(r[3]) + 1)
    redis.call('HSET', key, 'state', 'running', 'started_ms', now_ms, 'attempt', answer[1], 'rev', int(r[4] + 1))
    note('started', rid, 'engine', engine)
  end
  leases[#leases + 1] = ends
  leases[#leases + 1] = rid
  if redis.call('HGET', var_key(r[5]), 'stream') == '1' then
    answer[2], answer[3] = '1', published(r[5])
  end
  return answer
end

local entries, claims = {}, {}
for i = 3, #ARGV, 4 do entries[#entries + 1] = ARGV[i] end
redis.call('XACK', queue, group, unpack(entries))  -- a write that takes no memory comes first: see even_when_full
redis.call('XDEL', queue, unpack(entries))
for i = 3, #ARGV, 4 do claims[#claims + 1] = claim(ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
in_parts('ZADD', prefix .. 'leases', leases)
settle()
hint_ready()
return {'ok', claims}
