"""Searching text for somebody else's pattern.

Python's ``re`` may take for ever (``(a|aa)+$``) and cannot be interrupted. The package ``regex`` has a time-out, but
takes all memory for ``(((a{100}){100}){100}){100}``. RE2 is linear, but its ``$`` and its word characters are others,
and it knows no look-around. So ``re`` searches, as the author tried it out, in a process that the kernel limits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import threading

from parrot_workers.worker import search_process

CPU_LIMIT_S = 0.5
"""Processor time of one search; the longest output is searched for an ordinary pattern in a tenth of it."""
WALL_LIMIT_S = 5.0
"""For a machine that is so busy that half a second of processor time takes this long."""
MEMORY_LIMIT_BYTES = 1 << 29


class SearchLimit(Exception):
    """A search took too much time or memory."""


class BadPattern(Exception):
    """The pattern is no regular expression."""


class Searcher:
    """Searches in a process of its own, which is started at the first search and after one that took too much.

    Safe to use from several threads; searches wait for one another.
    """

    def __init__(self, *, cpu_limit_s: float = CPU_LIMIT_S, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._arguments = [str(cpu_limit_s), str(memory_limit_bytes)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def search(self, pattern: str, text: str) -> str | None:
        """Return group 1 of the first match, the match where the pattern has no group, None where nothing matches.

        Raises ``SearchLimit`` and ``BadPattern``.
        """
        with self._lock:
            answer = self._ask(json.dumps([pattern, text]).encode())
        if answer is None:
            raise SearchLimit
        if "error" in answer:
            raise BadPattern(answer["error"])
        return answer["found"]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.communicate()

    def _ask(self, request: bytes) -> dict[str, str | None] | None:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = threading.Timer(WALL_LIMIT_S, process.kill)
        deadline.start()
        try:
            search_process.write(process.stdin, request)
            answer = search_process.read(process.stdout)
        except BrokenPipeError:
            answer = None
        finally:
            deadline.cancel()
        if answer is None:
            self.close()
            return None
        parsed: dict[str, str | None] = json.loads(answer)
        return parsed

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            program = [sys.executable, "-I", "-S", search_process.__file__, *self._arguments]
            self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process


@functools.cache
def shared_searcher() -> Searcher:
    """Return the searcher of this process; it ends with the process."""
    searcher = Searcher()
    atexit.register(searcher.close)
    return searcher
