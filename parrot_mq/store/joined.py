"""Questions that many ask at the same time, asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from parrot_mq.errors import ParrotError, StoreError

Q = TypeVar("Q")
A = TypeVar("A")
Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]
"""Runs a task that somebody owns; raises if it takes none any more."""


class Joined(Generic[Q, A]):
    """Asks at once while fewer than ``max_calls`` calls are under way; what comes meanwhile goes together in the next.

    ``ask`` answers a list of at most ``max_size`` questions in their order; what it raises is the answer to all of
    them. Calls are tasks that ``spawn`` runs; there is none while nothing is asked.
    """

    def __init__(
        self, ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], max_size: int, spawn: Spawn, *, max_calls: int = 1
    ) -> None:
        self._ask = ask
        self._max_size = max_size
        self._spawn = spawn
        self._max_calls = max_calls
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Q) -> A:
        """Return the answer to ``question``; raises what ``ask`` raised, and StoreError if nobody asks any more."""
        if len(self._calls) < self._max_calls:
            call = self._spawn(self._ask_all())
            self._calls.add(call)
            call.add_done_callback(self._ended)
        answered: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answered))
        return await answered

    async def _ask_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
            await self._ask_for(batch)
        # Now, not when the task is seen to be done: whoever comes in between must not wait for a call that is over.
        call = asyncio.current_task()
        assert call is not None
        self._calls.discard(call)

    def _ended(self, call: asyncio.Task[None]) -> None:
        """However it ended, before it began too: nobody waits for a call that there is not."""
        self._calls.discard(call)
        if not self._calls:
            left, self._waiting = self._waiting, []
            _fail(left, StoreError("this was never asked: its client or its worker has ended"))

    async def _ask_for(self, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._ask([question for question, _ in batch])
        except ParrotError as error:
            _fail(batch, error)
        except RedisError as error:
            _fail(batch, StoreError(f"Redis refused to answer: {error}"))
        except BaseException as error:
            _fail(batch, StoreError(f"the answer never came: {error!r}"))
            raise
        else:
            for (_, answered), answer in zip(batch, answers, strict=True):
                if not answered.done():  # else nobody waits for it any more
                    answered.set_result(answer)


def _fail(batch: Iterable[tuple[Q, asyncio.Future[A]]], error: ParrotError) -> None:
    for _, answered in batch:
        if not answered.done():
            answered.set_exception(error)
