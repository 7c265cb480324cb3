"""What a session has yet to send: calls made between two awaits go out as one submission."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable

from parrot_mq.errors import ConfigError, ParrotError, StoreError
from parrot_mq.sdk.graph import Request, Submission
from parrot_mq.sdk.variable import SemanticVariable


class Outbox:
    """Collects what is called, and sends it: one submission after the other, each on its own task of the client.

    The first call after a pause schedules the sending for the loop's next turn (``delay_s`` later, for programs that
    run in another thread), so that all calls before the next await share a submission. While one is on its way, the
    next one collects.
    """

    def __init__(
        self,
        send: Callable[[Submission], Awaitable[None]],
        spawn: Callable[[Coroutine[None, None, None]], object],
        loop: asyncio.AbstractEventLoop,
        delay_s: float = 0.0,
    ) -> None:
        self._send = send
        self._spawn = spawn
        self._loop = loop
        self._delay_s = delay_s
        self._open = Submission()
        self._queue: deque[Submission] = deque()
        self._last: Submission | None = None
        self._unreported: list[Submission] = []
        self._is_scheduled = False
        self._is_running = False

    @property
    def open(self) -> Submission:
        """The submission that collects what is called now."""
        return self._open

    def check_thread(self) -> None:
        """Raise ``ConfigError`` unless the caller runs on the client's event loop."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise ConfigError(
                "a session is used outside of its event loop; in synchronous programs write "
                "`import parrot_mq.sync as P`, or run them with VirtualMachine(url).run(program)"
            )

    def add(self, variables: Iterable[SemanticVariable], requests: Iterable[Request] = ()) -> None:
        """Take variables and requests; they go out in the loop's next turn."""
        self.check_thread()
        self._open.variables.extend(variables)
        self._open.requests.extend(requests)
        if not self._is_scheduled:
            self._is_scheduled = True
            if self._delay_s:
                self._loop.call_later(self._delay_s, self._start)
            else:
                self._loop.call_soon(self._start)

    def depend_on(self, other: Outbox, submission: Submission) -> None:
        """Have the open submission wait for a ``submission`` of another session.

        That one takes nothing more, so that two sessions which use one another's variables never wait in a circle.
        """
        if submission.settled.is_set() or submission in self._open.after:
            return
        other._seal(submission)
        self._open.after.append(submission)

    async def flush(self) -> None:
        """Send what was called, and wait until all that was sent is settled.

        Raises the first error of a submit that the application has not seen yet.
        """
        self._start()
        if self._last is not None:
            await self._last.settled.wait()
        unreported, self._unreported = self._unreported, []
        for submission in unreported:
            if not submission.is_reported:
                submission.report()

    def start(self) -> None:
        """Send what was called without waiting for the loop's next turn."""
        self._start()

    def _seal(self, submission: Submission) -> None:
        if submission is self._open:
            self._queue.append(submission)
            self._last = submission
            self._open = Submission()

    def _start(self) -> None:
        self._is_scheduled = False
        if self._open:
            self._seal(self._open)
        if self._queue and not self._is_running:
            try:
                self._spawn(self._drain())
                self._is_running = True
            except ConfigError as error:  # the client is closed; told to whoever waits for the submits
                self._give_up(error)

    async def _drain(self) -> None:
        try:
            while self._queue:
                submission = self._queue[0]
                try:
                    await self._send(submission)
                    submission.settle()
                except ParrotError as error:
                    submission.settle(error)
                    self._unreported.append(submission)
                self._queue.popleft()
        finally:
            self._is_running = False
            self._give_up(StoreError("the client was closed before the submit was confirmed"))

    def _give_up(self, error: ParrotError) -> None:
        while self._queue:
            submission = self._queue.popleft()
            submission.settle(error)
            self._unreported.append(submission)
