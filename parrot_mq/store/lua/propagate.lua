-- propagate(epoch): goes on with large fan-outs, for UNITS. Answers whether there is more.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
for _ = 1, UNITS do
  local entry = (units > 0) and redis.call('XRANGE', prefix .. 'work', '-', '+', 'COUNT', '1')[1]
  if not entry then break end
  redis.call('XDEL', prefix .. 'work', entry[1])
  serve_rest_of(entry[2][2])
  serve()
end
settle()
hint_ready()
return {'ok', redis.call('XLEN', prefix .. 'work')}
