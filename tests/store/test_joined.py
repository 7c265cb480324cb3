"""Questions asked together: what is under way, what waits, errors, and who has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence

import pytest
from redis.exceptions import ResponseError

import parrot_mq as P
from parrot_mq.errors import StoreError
from parrot_mq.store.joined import Joined


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


class Tasks:
    """Spawns tasks that a test may end."""

    def __init__(self) -> None:
        self.all: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self.all.append(asyncio.create_task(work))
        return self.all[-1]


async def test_the_first_goes_at_once_and_the_others_together() -> None:
    oracle = Oracle()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 3, group.create_task)
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
        joined = Joined(oracle.ask, 8, group.create_task)
        oracle.error = error
        assert [type(e) for e in await asyncio.gather(joined(1), joined(2), return_exceptions=True)] == [StoreError] * 2
        oracle.error = None
        assert await joined(3) == 6


async def test_who_has_gone_takes_nobody_along() -> None:
    oracle = Oracle()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 8, group.create_task)
        gone, stays = asyncio.create_task(joined(1)), asyncio.create_task(joined(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        oracle.open.set()
        assert await stays == 4
        with pytest.raises(asyncio.CancelledError):
            await gone


async def test_nobody_waits_for_a_client_that_has_ended() -> None:
    oracle = Oracle()
    tasks = Tasks()
    joined = Joined(oracle.ask, 1, tasks.spawn)
    asking = [asyncio.create_task(joined(number)) for number in range(2)]
    await asyncio.sleep(0.01)
    tasks.all[0].cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreError] * 2


async def test_nobody_waits_for_a_call_that_never_began() -> None:
    tasks, oracle = Tasks(), Oracle()
    oracle.open.set()
    joined = Joined(oracle.ask, 8, tasks.spawn)
    asking = asyncio.create_task(joined(1))
    asyncio.get_running_loop().call_soon(lambda: tasks.all[0].cancel())
    with pytest.raises(StoreError, match="never asked"):
        await asyncio.wait_for(asking, 5)
    assert oracle.calls == []
    assert await asyncio.wait_for(joined(2), 5) == 4


async def test_nobody_waits_for_a_call_that_broke() -> None:
    tasks, oracle = Tasks(), Oracle()
    oracle.error = KeyError("ours")
    joined = Joined(oracle.ask, 1, tasks.spawn)
    asking = [asyncio.create_task(joined(number)) for number in range(2)]
    await asyncio.sleep(0.01)
    oracle.open.set()
    answers = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
    assert [type(answer) for answer in answers] == [StoreError] * 2
    assert isinstance(tasks.all[0].exception(), KeyError)


async def test_several_calls_at_once() -> None:
    oracle = Oracle()
    async with asyncio.TaskGroup() as group:
        joined = Joined(oracle.ask, 8, group.create_task, max_calls=2)
        asking = []
        for number in range(5):
            asking.append(group.create_task(joined(number)))
            await asyncio.sleep(0.01)
        assert oracle.calls == [[0], [1]]
        oracle.open.set()
        assert [await task for task in asking] == [0, 2, 4, 6, 8]
    assert oracle.calls == [[0], [1], [2, 3, 4]]


async def test_another_call_asks_what_waits_when_one_has_ended() -> None:
    tasks, oracle = Tasks(), Oracle()
    joined = Joined(oracle.ask, 8, tasks.spawn, max_calls=2)
    asking = []
    for number in range(3):
        asking.append(asyncio.create_task(joined(number)))
        await asyncio.sleep(0.01)
    tasks.all[0].cancel()
    await asyncio.sleep(0.01)
    oracle.open.set()
    first, *rest = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
    assert isinstance(first, StoreError)
    assert rest == [2, 4]


async def test_a_closed_client_asks_nothing() -> None:
    def refuse(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        work.close()
        raise P.ConfigError("closed")

    joined = Joined(Oracle().ask, 8, refuse)
    for _ in range(2):
        with pytest.raises(P.ConfigError):
            await joined(1)
