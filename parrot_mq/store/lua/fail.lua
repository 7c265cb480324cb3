-- fail(request, fence, error, retry): retry after a back-off, or error the output and everything downstream.
local rid, fence = ARGV[1], ARGV[2]
local key = req_key(rid)
local r = redis.call('HMGET', key, 'state', 'fence', 'attempt', 'output', 'last_failed', 'rev', 'engine', 'entry')
if r[5] == fence then return {'ok', 'known'} end
if r[2] ~= fence or (r[1] ~= 'running' and r[1] ~= 'queued') then
  return err('Fenced', rid, 'request ' .. rid .. ' is ' .. (r[1] or 'gone') .. ' and not ours any more')
end
even_when_full()
local attempt = tonumber(r[3])
-- Failing before the start is an attempt as well: else it could go on for ever.
if r[1] == 'queued' then attempt = attempt + 1 end
redis.call('HSET', key, 'last_failed', fence, 'attempt', attempt)
if ARGV[4] == '1' and attempt < MAX_ATTEMPTS then
  local delay = math.min(BACKOFF_BASE_MS * 2 ^ (attempt - 1), BACKOFF_MAX_MS)
  local rev = tonumber(r[6]) + 1
  if r[1] == 'queued' then unqueue(r[7], r[8]) else redis.call('ZREM', prefix .. 'leases', rid) end
  redis.call('ZADD', prefix .. 'delayed', now + delay, rid)
  redis.call('HSET', key, 'state', 'waiting', 'engine', '', 'rev', rev)
  hint('released', 'request', rid, 'rev', rev, 'state', 'waiting')
  event('failed', rid, 'error', ARGV[3], 'delay_ms', delay)
  return {'ok', 'retry'}
end
kill(rid, 'dead', ARGV[3], true)
settle()
hint_ready()
return {'ok', 'dead'}
