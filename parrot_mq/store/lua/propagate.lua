-- propagate(epoch): serves the next UNITS waiters of a large fan-out. Answers whether there is more.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local entries = redis.call('XRANGE', prefix .. 'work', '-', '+', 'COUNT', 1)
if #entries == 0 then return {'ok', 0} end
redis.call('XDEL', prefix .. 'work', entries[1][1])
unserved[1] = entries[1][2][2]
settle()
hint_ready()
return {'ok', redis.call('XLEN', prefix .. 'work')}
