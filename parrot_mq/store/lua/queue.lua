-- For scripts that put ready requests into an engine's queue.

-- Adds to a queue's entry what `start` would answer, if all of it is small, so that the engine need not wait for that.
-- A request with a stream is left out: its readers may have tokens already, which only `start` tells.
local function add_offer(entry, session, tenant, spec, output, inputs, call, attempt)
  local ids, size = words(inputs), #spec
  if size > OFFER_BYTES or #ids > MAX_OFFER_INPUTS or redis.call('HGET', var_key(output), 'stream') then return end
  local offer = {'attempt', string.format('%d', tonumber(attempt) + 1), 'session', session, 'tenant', tenant, 'spec', spec,
    'inputs', inputs}
  for i, vid in ipairs(ids) do
    local input = input_of(vid, call)
    if not input or input[3] ~= '' then return end
    size = size + #input[2] + #input[4]
    if size > OFFER_BYTES then return end
    local n = #offer
    offer[n + 1], offer[n + 2] = 'text:' .. i, input[2]
    if input[4] ~= '' then
      offer[n + 3], offer[n + 4], offer[n + 5], offer[n + 6] = 'ids:' .. i, input[4], 'by:' .. i, input[5]
    end
  end
  for _, word in ipairs(offer) do entry[#entry + 1] = word end
end

local function is_engine(engine)
  return redis.call('EXISTS', eng_key(engine), eng_key(engine) .. ':q') == 2
end

-- What `enqueue` wants to know of a request, after its plan.
local function to_be_queued(rid)
  return redis.call('HMGET', req_key(rid), 'state', 'rev', 'fences', 'session', 'tenant', 'spec', 'output', 'inputs', 'call',
    'attempt')
end

-- Puts a request that is ready into an engine's queue; `why` says what chose it. Returns its fence and its new revision.
local function enqueue(rid, engine, token, plan, why, rev, fences, ...)
  local count = string.format('%d', tonumber(fences or 0) + 1)
  local fence, new_rev = count .. '.' .. token, string.format('%d', tonumber(rev) + 1)
  local entry = {'request', rid, 'fence', fence, 'plan', plan}
  add_offer(entry, ...)
  local id = redis.call('XADD', eng_key(engine) .. ':q', '*', unpack(entry))
  redis.call('HSET', req_key(rid), 'state', 'queued', 'engine', engine, 'fence', fence, 'fences', count, 'entry', id,
    'why', why, 'queued_ms', now_ms, 'rev', new_rev)
  return fence, new_rev
end

