-- emit((request, fence, offset, ids, text)*): appends each piece to its output's stream. The same piece again is none, so
-- that a call may be made again: it holds at most one piece of a stream. Answers for each "new", "known" or an error.
local WIDTH = 5
local grown, answers = {}, {}

local function emit(rid, fence, offset, ids, text)
  local r = redis.call('HMGET', req_key(rid), 'state', 'fence', 'output', 'session')
  if r[1] ~= 'running' or r[2] ~= fence then
    return err('Fenced', rid, 'request ' .. rid .. ' is ' .. (r[1] or 'gone') .. ' and not ours any more')
  end
  local stream = var_key(r[3]) .. ':tokens'
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if newest and table.concat(newest[2], '\0') == table.concat({'fence', fence, 'offset', offset, 'ids', ids,
      'text', text}, '\0') then
    return 'known'
  end
  redis.call('XADD', stream, '*', 'fence', fence, 'offset', offset, 'ids', ids, 'text', text)
  redis.call('PEXPIRE', stream, TOKENS_TTL_MS)
  redis.call('PUBLISH', prefix .. 'ch:v:' .. r[3], r[3])
  grown[r[4]] = grown[r[4]] or {}
  table.insert(grown[r[4]], r[3])
  return 'new'
end

even_when_full()
for i = 1, #ARGV, WIDTH do answers[#answers + 1] = emit(unpack(ARGV, i, i + WIDTH - 1)) end
for session, vids in pairs(grown) do redis.call('PUBLISH', prefix .. 'ch:' .. session, joined(vids)) end
return {'ok', answers}
