-- dispatch(epoch, (request, engine, token, plan)*): puts ready requests into engines' queues. Answers each one's fence,
-- empty if it is not ready (any more) or its engine is gone. The same call again gives the same fences.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
even_when_full()

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

local fences, alive = {}, {}
for i = 2, #ARGV, 4 do
  local rid, engine, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local answer = ''
  if alive[engine] == nil then
    alive[engine] = redis.call('EXISTS', eng_key(engine), eng_key(engine) .. ':q') == 2
  end
  local r = redis.call('HMGET', req_key(rid), 'state', 'fence', 'fences', 'rev', 'session', 'tenant', 'spec', 'output',
    'inputs', 'call', 'attempt')
  if r[1] == 'ready' and alive[engine] then
    local count = string.format('%d', tonumber(r[3] or 0) + 1)
    answer = count .. '.' .. token
    local entry = {'request', rid, 'fence', answer, 'plan', ARGV[i + 3]}
    add_offer(entry, unpack(r, 5))
    local id = redis.call('XADD', eng_key(engine) .. ':q', '*', unpack(entry))
    redis.call('HSET', req_key(rid), 'state', 'queued', 'engine', engine, 'fence', answer, 'fences', count,
      'entry', id, 'queued_ms', now_ms, 'rev', tonumber(r[4]) + 1)
  elseif r[1] == 'queued' and token ~= '' and string.match(r[2], '%.(.*)$') == token then
    answer = r[2]
  end
  fences[#fences + 1] = answer
end
return {'ok', fences}
