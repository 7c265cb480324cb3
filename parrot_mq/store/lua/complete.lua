-- complete(request, fence, text, value_fence, size, digest, token_ids, tokens_by, usage[, "1", raw, raw_fence])
local rid, fence, usage = ARGV[1], ARGV[2], ARGV[9]
local raw_fence = (ARGV[12] or '') ~= '' and ARGV[12] .. '.raw' or ''
local r = to_be_finished(rid)
if r.state == 'done' and r.fence == fence then return {'ok', 'known'} end
if r.state ~= 'running' or r.fence ~= fence then
  return err('Fenced', rid, 'request ' .. rid .. ' is ' .. (r.state or 'gone') .. ' and not ours any more')
end
local vid = r.output
if not is_staged(vid, ARGV[4]) or not is_staged(vid, raw_fence) then return staged_value_lost(vid) end
even_when_full()
local known, rev = to_be_resolved(vid), 0
-- The output may be gone with its session, if that is not the request's own: then there is nobody to write for.
if known[1] == 'pending' then
  local fields = value_fields(vid, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
  local function add(name, text) fields[#fields + 1], fields[#fields + 2] = name, text end
  if ARGV[7] ~= '' then
    add('token_ids', ARGV[7])
    add('tokens_by', ARGV[8])
  end
  if ARGV[10] == '1' then
    add('raw_call', r.call)
    if raw_fence == '' then
      add('raw', ARGV[11])
    else
      add('raw_fence', ARGV[12])
      redis.call('PERSIST', val_key(vid, raw_fence))
    end
  end
  rev = resolve(vid, known, fields)
end
local request_rev = finish(rid, r, 'done', 'usage', usage)
event('done', rid, 'engine', r.engine, 'usage', usage)
settle()
hint('resolved', 'variable', vid, 'rev', rev, 'digest', ARGV[6], 'bytes', ARGV[5], 'error', '',
  'request', rid .. ':' .. string.format('%d', request_rev), 'ready', joined(ready), 'dead', joined(dead), 'usage', usage)
by_lane(ready)
return {'ok', 'set'}
