"""The program of ``search.Searcher``: searches texts for patterns, each within a limit of processor time and of memory.

``python search_process.py CPU_LIMIT_S MEMORY_LIMIT_BYTES`` reads requests from standard input, JSON ``[pattern, text]``
behind its length in bytes (four of them, big-endian), and answers in the same form: ``{"found": ...}`` (null without a
match) or ``{"error": ...}``. The kernel ends it where a search exceeds a limit, for ``re`` heeds no signal handler.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import IO

LENGTH_BYTES = 4


def read(stream: IO[bytes]) -> bytes | None:
    """Return the next message, None where the stream ends."""
    head = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(head, "big")) if len(head) == LENGTH_BYTES else None


def write(stream: IO[bytes], message: bytes) -> None:
    """Write a message."""
    stream.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)
    stream.flush()


def search(pattern: str, text: str) -> dict[str, str | None]:
    """Return what a search found: group 1 where the pattern has one, else the match."""
    try:
        match = re.search(pattern, text)
    except (re.error, RecursionError, OverflowError) as error:
        return {"error": str(error)}
    except MemoryError:
        sys.exit("out of memory")
    return {"found": (match[1] if match.re.groups else match[0]) if match else None}


def main(cpu_limit_s: str, memory_limit_bytes: str) -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_limit_bytes), int(memory_limit_bytes)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, whose end closes our input
    while (request := read(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, float(cpu_limit_s))
        answer = search(*json.loads(request))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        write(sys.stdout.buffer, json.dumps(answer).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
