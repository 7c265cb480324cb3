"""An event loop in a thread of its own, for programs that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from parrot_mq.errors import ConfigError

T = TypeVar("T")

STOP_TIMEOUT_S = 60.0
"""How long ``close`` waits for the thread: a client confirms its submits before it ends."""


class Portal:
    """Runs coroutines on a background event loop; any thread may call it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="parrot_mq-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop, and return its result or raise its error.

        An interrupt (Ctrl-C) of the waiting thread cancels it. Raises ``ConfigError`` on the loop's own thread, where
        waiting would never end, and once the portal is closed.
        """
        problem = ""
        if threading.current_thread() is self._thread:
            problem = "a blocking call was made on the event loop itself; await the asynchronous one of parrot_mq"
        elif self._loop.is_closed() or not self._thread.is_alive():
            problem = "the client is closed; connect again"
        if problem:
            work.close()
            raise ConfigError(problem)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the loop, and return its result or raise its error."""

        async def work() -> T:
            return function()

        return self.run(work())

    def close(self) -> None:
        """End the loop and its thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_TIMEOUT_S)
