-- set_variable(variable, "value"|"error", text, fence, size, digest, token_ids, tokens_by, "stub"|"")
local vid, mode, text, fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = var_key(vid)
local old = redis.call('HMGET', key, 'state', 'digest', 'producer', 'home', 'session', 'rev')
if not old[1] then
  return err('UnknownVariable', vid, 'variable ' .. vid .. ' does not exist, or its session has expired')
end
if ARGV[9] == 'stub' and not old[4] then
  return err('Conflict', vid, 'variable ' .. vid .. ' is at home here, it is not imported')
end
if old[1] ~= 'pending' then
  if mode == 'value' and old[2] ~= ARGV[6] then
    return err('AlreadySet', vid, 'variable ' .. vid .. ' is ' .. old[1] .. ' already; the first writer wins')
  end
  return {'ok', 'known'}
end
if old[3] then
  return err('AlreadyProduced', vid, 'variable ' .. vid .. ' has a producer (' .. old[3] .. '), it cannot be set by hand')
end
if mode == 'error' then
  set_error(vid, text)
else
  if fence ~= '' and redis.call('EXISTS', val_key(vid, fence)) == 0 then
    return err('StagedValueLost', vid, 'the staged value of ' .. vid .. ' is gone; stage it again')
  end
  set_value(vid, text, fence, ARGV[5], ARGV[6], ARGV[7], ARGV[8])
end
serve()
hint('resolved', 'variable', vid, 'rev', tonumber(old[6]) + 1, 'digest', ARGV[6], 'bytes', ARGV[5],
  'error', (mode == 'error') and '1' or '', 'request', '', 'ready', joined(ready), 'dead', joined(dead))
event('set', vid)
return {'ok', 'set'}
