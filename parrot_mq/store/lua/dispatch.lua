-- dispatch(epoch, (request, engine, token, plan)*): puts ready requests into engines' queues.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local fences, alive = {}, {}
for i = 2, #ARGV, 4 do
  local rid, engine, fence = ARGV[i], ARGV[i + 1], ''
  if alive[engine] == nil then
    alive[engine] = redis.call('EXISTS', eng_key(engine)) == 1 and redis.call('EXISTS', eng_key(engine) .. ':q') == 1
  end
  if alive[engine] and redis.call('HGET', req_key(rid), 'state') == 'ready' then
    fence = redis.call('HINCRBY', req_key(rid), 'fences', 1) .. '.' .. ARGV[i + 2]
    redis.call('HSET', req_key(rid), 'state', 'queued', 'engine', engine, 'fence', fence, 'queued_ms', now)
    redis.call('HINCRBY', req_key(rid), 'rev', 1)
    redis.call('XADD', eng_key(engine) .. ':q', '*', 'request', rid, 'fence', fence, 'plan', ARGV[i + 3])
  end
  fences[#fences + 1] = fence
end
return {'ok', fences}
