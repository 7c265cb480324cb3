-- learn(epoch, (tenant, digest, output_tokens)*): keeps what the leader has learned of functions' outputs, as JSON that only
-- schedulers read. Functions that are not here are passed over.
if is_stale_epoch(ARGV[1]) then return fenced_epoch(ARGV[1]) end
local count = 0
for i = 2, #ARGV, 3 do
  local key = prefix .. 'fn:' .. ARGV[i] .. ':' .. ARGV[i + 1]
  if redis.call('EXISTS', key) == 1 then
    redis.call('HSET', key, 'output_tokens', ARGV[i + 2])
    count = count + 1
  end
end
return {'ok', count}
