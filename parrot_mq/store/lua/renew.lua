-- renew(engine, (request, fence)*): extends leases; answers the ids that are lost and those that were cancelled.
local lost, cancelled, leases, ends = {}, {}, {}, string.format('%d', now + LEASE_MS)
even_when_full()
for i = 2, #ARGV, 2 do
  local rid = ARGV[i]
  local r = redis.call('HMGET', req_key(rid), 'state', 'fence')
  if r[1] == 'running' and r[2] == ARGV[i + 1] then
    leases[#leases + 1] = ends
    leases[#leases + 1] = rid
  elseif r[1] == 'cancelled' then
    cancelled[#cancelled + 1] = rid
  elseif not (r[1] == 'queued' and r[2] == ARGV[i + 1]) then
    lost[#lost + 1] = rid
  end
end
in_parts('ZADD', prefix .. 'leases', leases)
return {'ok', lost, cancelled}
