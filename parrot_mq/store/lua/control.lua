-- control(engine, kind, request, fence, text): a message for an engine, if it is there.
even_when_full()
control(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
return {'ok'}
