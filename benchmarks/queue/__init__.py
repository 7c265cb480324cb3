"""How fast a job travels: parrot_mq beside arq and taskiq, on the same Redis, with the same serialiser (orjson).

Every system runs its serving side in two processes (ours: scheduler and engine; theirs: two workers) and is driven by
one more. A job does nothing; it answers the monotonic time at which it was started, which on one machine is comparable
between processes.
"""
