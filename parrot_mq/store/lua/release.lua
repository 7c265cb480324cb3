-- release(engine, (request, fence)*): gives requests back; they are ready again, and it was no attempt.
even_when_full()
for i = 2, #ARGV, 2 do
  local rid = ARGV[i]
  local r = redis.call('HMGET', req_key(rid), 'state', 'fence')
  if r[2] == ARGV[i + 1] and (r[1] == 'queued' or r[1] == 'running') then
    if r[1] == 'running' then redis.call('HINCRBY', req_key(rid), 'attempt', -1) end
    undispatch(rid, ARGV[1])
  end
end
settle()
hint_ready()
return {'ok', #ready}
