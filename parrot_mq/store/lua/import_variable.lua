-- import_variable(variable, importer, tenant): runs in the variable's home partition.
local v = redis.call('HMGET', var_key(ARGV[1]), 'state', 'tenant')
if not v[1] then return {'ok', 'unknown'} end
if v[2] ~= ARGV[3] then return {'ok', 'forbidden'} end
if v[1] ~= 'pending' then return {'ok', 'resolved'} end
redis.call('SADD', var_key(ARGV[1]) .. ':remote', ARGV[2])
return {'ok', 'pending'}
