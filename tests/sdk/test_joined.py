"""Questions asked together: what is under way, what waits, errors, and who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from redis.exceptions import ResponseError

import parrot_mq as P
from parrot_mq.errors import StoreError
from parrot_mq.sdk.joined import Joined


class Oracle:
    """Doubles numbers; a call ends once ``open`` is set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, questions: Sequence[int]) -> list[int]:
        self.calls.append(list(questions))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [2 * question for question in questions]


async def test_the_first_goes_at_once_and_the_others_together() -> None:
    oracle = Oracle()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 3, lambda work: group.create_task(work) and None)
        first = group.create_task(joined(1))
        await asyncio.sleep(0.01)
        others = [group.create_task(joined(number)) for number in range(2, 7)]
        await asyncio.sleep(0.01)
        assert oracle.calls == [[1]]
        oracle.open.set()
        assert [await task for task in (first, *others)] == [2, 4, 6, 8, 10, 12]
        assert await joined(7) == 14
    assert oracle.calls == [[1], [2, 3, 4], [5, 6], [7]]


@pytest.mark.parametrize("error", [StoreError("no"), ResponseError("no")])
async def test_an_error_is_that_of_its_call_alone(error: Exception) -> None:
    oracle = Oracle()
    oracle.open.set()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 8, lambda work: group.create_task(work) and None)
        oracle.error = error
        assert [type(e) for e in await asyncio.gather(joined(1), joined(2), return_exceptions=True)] == [StoreError] * 2
        oracle.error = None
        assert await joined(3) == 6


async def test_who_has_gone_takes_nobody_along() -> None:
    oracle = Oracle()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 8, lambda work: group.create_task(work) and None)
        gone, stays = asyncio.create_task(joined(1)), asyncio.create_task(joined(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        oracle.open.set()
        assert await stays == 4
        with pytest.raises(asyncio.CancelledError):
            await gone


async def test_nobody_waits_for_a_client_that_has_ended() -> None:
    oracle = Oracle()
    tasks: list[asyncio.Task[None]] = []
    joined = Joined(oracle.ask, 1, lambda work: tasks.append(asyncio.create_task(work)))
    asking = [asyncio.create_task(joined(number)) for number in range(2)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreError] * 2


async def test_a_closed_client_asks_nothing() -> None:
    def refuse(work: object) -> None:
        work.close()  # type: ignore[attr-defined]
        raise P.ConfigError("closed")

    joined = Joined(Oracle().ask, 8, refuse)
    for _ in range(2):
        with pytest.raises(P.ConfigError):
            await joined(1)
