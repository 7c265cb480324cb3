"""Questions that many ask at the same time, asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from parrot_mq.errors import ParrotError, StoreError

Q = TypeVar("Q")
A = TypeVar("A")


class Joined(Generic[Q, A]):
    """Asks at once while no call is under way; what comes meanwhile goes together in the next call.

    ``ask`` answers a list of at most ``max_size`` questions in their order. ``spawn`` runs a task; there is none while
    nothing is asked.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        max_size: int,
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._ask = ask
        self._max_size = max_size
        self._spawn = spawn
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._is_asking = False

    async def __call__(self, question: Q) -> A:
        """Return the answer to ``question``; raises what ``ask`` raised."""
        if not self._is_asking:
            self._spawn(self._ask_all())
            self._is_asking = True
        answered: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answered))
        return await answered

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
                await self._ask_for(batch)
        except asyncio.CancelledError:
            _fail(self._waiting, StoreError("the client has ended"))
            raise
        finally:
            self._is_asking = False

    async def _ask_for(self, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._ask([question for question, _ in batch])
        except ParrotError as error:
            _fail(batch, error)
        except RedisError as error:
            _fail(batch, StoreError(f"Redis refused to answer: {error}"))
        except asyncio.CancelledError:
            _fail(batch, StoreError("the client has ended"))
            raise
        else:
            for (_, answered), answer in zip(batch, answers, strict=True):
                if not answered.done():  # else nobody waits for it any more
                    answered.set_result(answer)


def _fail(batch: Iterable[tuple[Q, asyncio.Future[A]]], error: ParrotError) -> None:
    for _, answered in batch:
        if not answered.done():
            answered.set_exception(error)
