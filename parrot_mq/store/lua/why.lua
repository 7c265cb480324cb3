-- why(ttl_ms, request*): asks the leading scheduler why requests sit where they do; it answers into ..why:<request>.
-- Who is asked about already is not asked about again while that key lives, however often this is called.
local asked = {}
for i = 2, #ARGV do
  if redis.call('SET', prefix .. 'why:' .. ARGV[i], '', 'NX', 'PX', ARGV[1]) then asked[#asked + 1] = ARGV[i] end
end
if #asked > 0 then hint('why', 'requests', joined(asked)) end
return {'ok', #asked}
