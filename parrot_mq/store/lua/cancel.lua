-- cancel(kind, reason, id*): requests, or variables (their producer; without one, the variable itself).
even_when_full()
local count = 0
for i = 3, #ARGV do
  local rid = ARGV[i]
  if string.match(rid, '^%d+%-v%-') then
    local v = redis.call('HMGET', var_key(rid), 'state', 'producer')
    if v[1] == 'pending' and not v[2] then
      set_error(rid, record(ARGV[1], ARGV[2]))
      count = count + 1
    end
    rid = v[2]
  end
  if rid and kill(rid, 'cancelled', record(ARGV[1], ARGV[2], rid)) then count = count + 1 end
end
settle()
hint_ready()
return {'ok', count}
