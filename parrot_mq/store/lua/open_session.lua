-- open_session(session, tenant, secret_hash)
local sid, tenant = ARGV[1], ARGV[2]
local key = sess_key(sid)
local known = redis.call('HGET', key, 'tenant')
if known and known ~= tenant then
  return err('Conflict', sid, 'session ' .. sid .. ' belongs to another tenant')
end
if not known then
  redis.call('HSET', key, 'tenant', tenant, 'state', 'open', 'secret_hash', ARGV[3], 'live', 0, 'created_ms', now)
end
redis.call('ZADD', prefix .. 'sessions', now + SESSION_TTL_MS, sid)
return {'ok'}
