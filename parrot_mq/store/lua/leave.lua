-- leave(engine): removes its heartbeat; the reaper does the rest.
redis.call('DEL', eng_key(ARGV[1]))
hint('engine', 'engine', ARGV[1])
return {'ok'}
