-- set_variable(variable, "value"|"error", text, fence, size, digest, token_ids, tokens_by, "stub"|"")
local vid, mode, text, fence, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local old = redis.call('HMGET', var_key(vid), 'state', 'digest', 'producer', 'home')
if not old[1] then
  return err('UnknownVariable', vid, 'variable ' .. vid .. ' does not exist, or its session has expired')
end
if ARGV[9] == 'stub' and not old[4] then
  return err('Conflict', vid, 'variable ' .. vid .. ' is at home here, it is not imported')
end
if old[1] ~= 'pending' then
  if mode == 'value' and old[2] ~= digest then
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
  if not is_staged(vid, fence) then return staged_value_lost(vid) end
  local fields = value_fields(vid, text, fence, ARGV[5], digest)
  if ARGV[7] ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'token_ids', ARGV[7]
    fields[#fields + 1], fields[#fields + 2] = 'tokens_by', ARGV[8]
  end
  resolve(vid, to_be_resolved(vid), fields)
end
settle()
if mode == 'value' then
  hint('resolved', 'variables', vid .. ':' .. digest .. ':' .. ARGV[5], 'done', '', 'ready', joined(ready))
else
  hint_ready()
end
by_lane(ready)
event('set', vid)
return {'ok', 'set'}
