-- reap_engine(epoch, engine, running*): takes back what an engine without a heartbeat holds, 100 entries at a time.
-- Answers {dead, more}; the streams of a dead engine are deleted once they are empty.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local engine = ARGV[2]
local key = eng_key(engine)
if redis.call('EXISTS', key) == 1 then return {'ok', 0, 0} end
even_when_full()
for i = 3, #ARGV do
  local r = redis.call('HMGET', req_key(ARGV[i]), 'state', 'engine')
  if r[1] == 'running' and r[2] == engine then redeliver(ARGV[i]) end
end
local entries, ids = redis.call('XRANGE', key .. ':q', '-', '+', 'COUNT', 100), {}
for _, entry in ipairs(entries) do
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  if fields.request then
    local r = redis.call('HMGET', req_key(fields.request), 'state', 'fence')
    if r[1] == 'queued' and r[2] == fields.fence then undispatch(fields.request, engine) end
  end
  ids[#ids + 1] = entry[1]
end
in_parts('XDEL', key .. ':q', ids)
if #entries < 100 then redis.call('DEL', key .. ':q', key .. ':c') end
settle()
hint_ready()
return {'ok', 1, (#entries == 100) and 1 or 0}
