"""One module a system; each is run as ``python -m benchmarks.queue.systems.NAME`` and prints one line of JSON."""
