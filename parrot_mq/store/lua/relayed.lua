-- relayed(entry): an outbox entry has been delivered.
redis.call('XDEL', prefix .. 'outbox', ARGV[1])
return {'ok'}
