"""Completions on their way to one partition, several in a call."""

from __future__ import annotations

import asyncio

from parrot_mq.errors import StoreError
from parrot_mq.store.completion import MAX_COMPLETIONS, Completion
from parrot_mq.store.engine import EngineStore

MAX_WRITERS = 2
"""Calls under way at once."""


class Outbox:
    """Sends what there is at once; what comes while that is under way goes together in the next call.

    Its writers are tasks of ``group`` and end when nothing is left.
    """

    def __init__(self, store: EngineStore, group: asyncio.TaskGroup) -> None:
        self._store = store
        self._group = group
        self._waiting: list[tuple[Completion, asyncio.Future[None]]] = []
        self._num_writers = 0

    async def put(self, completion: Completion) -> None:
        """Write a completion. Raises what ``EngineStore.complete`` raises."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((completion, written))
        if self._num_writers < MAX_WRITERS:
            self._num_writers += 1
            self._group.create_task(self._write())
        await written

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_COMPLETIONS], self._waiting[MAX_COMPLETIONS:]
                await self._send(batch)
        finally:
            self._num_writers -= 1

    async def _send(self, batch: list[tuple[Completion, asyncio.Future[None]]]) -> None:
        errors: list[StoreError | None]
        try:
            errors = await self._store.complete_many([completion for completion, _ in batch])
        except StoreError as error:
            errors = [error] * len(batch)
        for (_, written), problem in zip(batch, errors, strict=True):
            if written.done():  # whoever waited for it was cancelled
                continue
            if problem is None:
                written.set_result(None)
            else:
                written.set_exception(problem)
