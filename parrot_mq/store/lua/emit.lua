-- emit(request, fence, offset, ids, num_ids, text): appends a piece to the output's stream. The same piece again is none.
local r = redis.call('HMGET', req_key(ARGV[1]), 'state', 'fence', 'output', 'session')
if r[1] ~= 'running' or r[2] ~= ARGV[2] then
  return err('Fenced', ARGV[1], 'request ' .. ARGV[1] .. ' is ' .. (r[1] or 'gone') .. ' and not ours any more')
end
local stream = var_key(r[3]) .. ':tokens'
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
if newest and table.concat(newest[2], '\0') == table.concat({'fence', ARGV[2], 'offset', ARGV[3], 'ids', ARGV[4],
    'text', ARGV[6]}, '\0') then
  return {'ok', 'known'}
end
even_when_full()
redis.call('XADD', stream, '*', 'fence', ARGV[2], 'offset', ARGV[3], 'ids', ARGV[4], 'text', ARGV[6])
redis.call('PEXPIRE', stream, TOKENS_TTL_MS)
redis.call('PUBLISH', prefix .. 'ch:' .. r[4], r[3])
redis.call('PUBLISH', prefix .. 'ch:v:' .. r[3], r[3])
return {'ok', 'new'}
