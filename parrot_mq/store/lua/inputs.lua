-- For scripts that hand a request to an engine: what it reads.

-- An input as the engine gets it; nil if it was deleted with its session.
local function input_of(vid, call)
  local v = redis.call('HMGET', var_key(vid), 'value', 'value_fence', 'token_ids', 'tokens_by', 'raw', 'raw_fence', 'raw_call')
  if not v[1] and not v[2] then return nil end
  -- Within one call the continuation sees the raw output.
  if v[7] and v[7] == call then
    if v[5] then return {vid, v[5], '', '', ''} end
    return {vid, '', val_key(vid, v[6] .. '.raw'), '', ''}
  end
  return {vid, v[1] or '', v[2] and val_key(vid, v[2]) or '', v[3] or '', v[4] or ''}
end

