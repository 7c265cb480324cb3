-- complete((request, fence, text, value_fence, size, digest, token_ids, tokens_by, usage, num_output_tokens,
--           has_raw, raw, raw_fence)*): sets outputs and finishes their requests, each by itself.
-- Answers for each "set", "known" or an error.
local WIDTH = 13
local variables, done, answers = {}, {}, {}

local function complete(rid, fence, text, value_fence, size, digest, token_ids, tokens_by, usage, num_tokens, has_raw, raw,
                        raw_fence)
  local r = to_be_finished(rid)
  if r.state == 'done' and r.fence == fence then return 'known' end
  if (r.state ~= 'running' and r.state ~= 'queued') or r.fence ~= fence then
    return err('Fenced', rid, 'request ' .. rid .. ' is ' .. (r.state or 'gone') .. ' and not ours any more')
  end
  local vid = r.output
  local staged_raw = (raw_fence ~= '') and raw_fence .. '.raw' or ''
  if not is_staged(vid, value_fence) or not is_staged(vid, staged_raw) then return staged_value_lost(vid) end
  local known = to_be_resolved(vid)
  if r.state == 'queued' then  -- it was offered, and was done before its claim came: this is the claim as well
    if known[3] == '1' then
      return err('NotClaimed', rid, 'the output of ' .. rid .. ' is streamed: claim it, and write its pieces, first')
    end
    redis.call('HSET', req_key(rid), 'started_ms', now_ms, 'attempt', int(r.attempt + 1))
    note('started', rid, 'engine', r.engine)
  end
  -- The output may be gone with its session, if that is not the request's own: then there is nobody to write for.
  if known[1] == 'pending' then
    local fields = value_fields(vid, text, value_fence, size, digest)
    local function add(name, content) fields[#fields + 1], fields[#fields + 2] = name, content end
    if token_ids ~= '' then
      add('token_ids', token_ids)
      add('tokens_by', tokens_by)
    end
    if has_raw == '1' then
      add('raw_call', r.call)
      if raw_fence == '' then
        add('raw', raw)
      else
        add('raw_fence', raw_fence)
        redis.call('PERSIST', val_key(vid, staged_raw))
      end
    end
    resolve(vid, known, fields)
    variables[#variables + 1] = vid .. ':' .. digest .. ':' .. size
  end
  done[#done + 1] = finish(rid, r, 'done', 'usage', usage) .. ':' .. num_tokens
  note('done', rid, 'engine', r.engine)
  return 'set'
end

even_when_full()
for i = 1, #ARGV, WIDTH do answers[#answers + 1] = complete(unpack(ARGV, i, i + WIDTH - 1)) end
settle()
if #done > 0 then
  hint('resolved', 'variables', joined(variables), 'done', joined(done), 'ready', joined(ready))
end
by_lane(ready)
return {'ok', answers}
