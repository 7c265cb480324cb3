-- streams(count, (variable, after)*): the output streams of variables, each from the entry after that id, at most count
-- entries in all. Answers for each: state (empty if unknown), entries, "1" if there may be more of them.
local left, answers = tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  local key, entries = var_key(ARGV[i]), {}
  if left > 0 then
    entries = redis.call('XRANGE', key .. ':tokens', '(' .. ARGV[i + 1], '+', 'COUNT', left)
  end
  answers[#answers + 1] = {redis.call('HGET', key, 'state') or '', entries, (#entries == left) and '1' or ''}
  left = left - #entries
end
return {'ok', answers}
