-- complete(request, fence, text, value_fence, size, digest, token_ids, tokens_by, usage[, "1", raw, raw_fence])
local rid, fence = ARGV[1], ARGV[2]
local key = req_key(rid)
local r = redis.call('HMGET', key, 'state', 'fence', 'output', 'call', 'engine')
if r[1] == 'done' and r[2] == fence then return {'ok', 'known'} end
if r[1] ~= 'running' or r[2] ~= fence then
  return err('Fenced', rid, 'request ' .. rid .. ' is ' .. (r[1] or 'gone') .. ' and not ours any more')
end
local vid = r[3]
for _, staged in ipairs({ARGV[4], ARGV[12] and ARGV[12] ~= '' and (ARGV[12] .. '.raw') or ''}) do
  if staged ~= '' and redis.call('EXISTS', val_key(vid, staged)) == 0 then
    return err('StagedValueLost', vid, 'the staged value of ' .. vid .. ' is gone; stage it again')
  end
end
if ARGV[10] == '1' then
  if ARGV[12] ~= '' then
    redis.call('PERSIST', val_key(vid, ARGV[12] .. '.raw'))
    redis.call('HSET', var_key(vid), 'raw_fence', ARGV[12], 'raw_call', r[4])
  else
    redis.call('HSET', var_key(vid), 'raw', ARGV[11], 'raw_call', r[4])
  end
end
set_value(vid, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
redis.call('HSET', key, 'usage', ARGV[9])
local rev = finish(rid, 'done')
event('done', rid, 'engine', r[5], 'usage', ARGV[9])
serve()
hint('resolved', 'variable', vid, 'rev', redis.call('HGET', var_key(vid), 'rev'), 'digest', ARGV[6], 'bytes', ARGV[5],
  'error', '', 'request', rid .. ':' .. rev, 'ready', joined(ready), 'dead', joined(dead), 'usage', ARGV[9])
return {'ok', 'set'}
