-- dispatch(epoch, (request, engine, token, plan, why)*): puts ready requests into engines' queues. Answers each one's fence,
-- empty if it is not ready (any more) or its engine is gone. The same call again gives the same fences.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
even_when_full()
local fences, alive = {}, {}
for i = 2, #ARGV, 5 do
  local rid, engine, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if alive[engine] == nil then alive[engine] = is_engine(engine) end
  local r, answer = to_be_queued(rid), ''
  if r[1] == 'ready' and alive[engine] then
    answer = enqueue(rid, engine, token, ARGV[i + 3], ARGV[i + 4], unpack(r, 2))
  elseif r[1] == 'queued' and token ~= '' then
    local fence = redis.call('HGET', req_key(rid), 'fence')
    if string.match(fence, '%.(.*)$') == token then answer = fence end
  end
  fences[#fences + 1] = answer
end
return {'ok', fences}
