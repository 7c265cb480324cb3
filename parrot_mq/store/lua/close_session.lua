-- close_session(session): no more work; its variables stay for their TTL.
local key = sess_key(ARGV[1])
if redis.call('EXISTS', key) == 0 then
  return err('UnknownSession', ARGV[1], 'session ' .. ARGV[1] .. ' does not exist or has expired')
end
even_when_full()
redis.call('HSET', key, 'state', 'closed')
redis.call('ZADD', prefix .. 'sessions', now + TOMBSTONE_MS, ARGV[1])
return {'ok'}
