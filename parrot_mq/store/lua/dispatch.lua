-- dispatch(epoch, (request, engine, token, plan)*): puts ready requests into engines' queues. Answers each one's fence,
-- empty if it is not ready (any more) or its engine is gone. The same call again gives the same fences.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
even_when_full()
local fences, alive = {}, {}
for i = 2, #ARGV, 4 do
  local rid, engine, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local answer = ''
  if alive[engine] == nil then
    alive[engine] = redis.call('EXISTS', eng_key(engine), eng_key(engine) .. ':q') == 2
  end
  local r = redis.call('HMGET', req_key(rid), 'state', 'fence', 'fences', 'rev')
  if r[1] == 'ready' and alive[engine] then
    local count = string.format('%d', tonumber(r[3] or 0) + 1)
    answer = count .. '.' .. token
    local entry = redis.call('XADD', eng_key(engine) .. ':q', '*', 'request', rid, 'fence', answer, 'plan', ARGV[i + 3])
    redis.call('HSET', req_key(rid), 'state', 'queued', 'engine', engine, 'fence', answer, 'fences', count,
      'entry', entry, 'queued_ms', now, 'rev', tonumber(r[4]) + 1)
  elseif r[1] == 'queued' and token ~= '' and string.match(r[2], '%.(.*)$') == token then
    answer = r[2]
  end
  fences[#fences + 1] = answer
end
return {'ok', fences}
