-- For scripts that make requests ready: those go into an engine's queue at once if the scheduler granted a lane for their
-- model (see grant). All of them or none: what does not fit wants a decision.

local function plan_of(output, hints)
  local objective = redis.call('HGET', var_key(output), 'objective')
  local kind = objective and string.match(objective, '"kind":"(%a+)"')
  return '{"rank":' .. now_ms .. (kind and ',"objective":"' .. kind .. '"' or '') .. (hints and ',' .. hints or '') .. '}'
end

-- Comes after the hint by which the scheduler knows the requests; `list` holds them as words that begin "id:".
local function by_lane(list)
  local lanes, rids = prefix .. 'lanes', {}
  if #list == 0 or redis.call('EXISTS', lanes) == 0 then return end
  for i, word in ipairs(list) do rids[i] = string.match(word, '^[^:]+') end
  local model = redis.call('HGET', req_key(rids[1]), 'model') or ''
  local engine, credits, hints = unpack(redis.call('HMGET', lanes, 'engine:' .. model, 'credits:' .. model, 'hints'))
  if not engine or tonumber(credits) < #rids or not is_engine(engine) then return end
  for i = 2, #rids do
    if (redis.call('HGET', req_key(rids[i]), 'model') or '') ~= model then return end
  end
  local sent = {}
  for i, rid in ipairs(rids) do
    local r = to_be_queued(rid)
    -- The random part of a fence: it must not come again if Redis loses its last second, and time goes on.
    local token = string.format('%x', now_us)
    local fence, rev = enqueue(rid, engine, token, plan_of(r[7], hints), '{"reason":"lane"}', unpack(r, 2))
    sent[i] = rid .. ':' .. rev .. ':' .. fence
  end
  redis.call('HINCRBY', lanes, 'credits:' .. model, -#rids)
  hint('dispatched', 'engine', engine, 'requests', joined(sent))
end

