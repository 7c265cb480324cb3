-- read(kind, fields, id*): these fields of each hash "<kind><id>", as HMGET answers.
local fields, found = words(ARGV[2]), {}
for i = 3, #ARGV do found[i - 2] = redis.call('HMGET', prefix .. ARGV[1] .. ARGV[i], unpack(fields)) end
return {'ok', found}
