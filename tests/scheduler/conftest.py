"""Fixtures of the scheduler's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from parrot_mq.store import Store, connect
from tests.conftest import fake
from tests.scheduler.support import App, StubEngine


class Runs(Protocol):
    async def run(self) -> None: ...


Start = Callable[[Runs], "asyncio.Task[None]"]


@pytest.fixture
async def running() -> AsyncIterator[Start]:
    """Give ``start(scheduler)``: runs it beside the test and cancels it after; its failure fails the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(thing: Runs) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(thing.run()))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@pytest.fixture(params=["fake", pytest.param("redis", marks=pytest.mark.redis)])
async def shell_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store on an empty fakeredis and on an empty real Redis in turn."""
    if request.param == "fake":
        async with fake() as connected:
            yield connected
        return
    async with await connect(request.getfixturevalue("redis_url")) as connected:
        await connected.client.flushall()
        yield connected


@pytest.fixture
async def app(shell_store: Store) -> App:
    """An application with an open session."""
    return await App(shell_store).open()


@pytest.fixture
async def engines(shell_store: Store) -> AsyncIterator[Callable[..., Awaitable[StubEngine]]]:
    """Give ``start(name, ...)``: a stub engine that serves until the test ends."""
    started: list[StubEngine] = []

    async def start(name: str, **options: object) -> StubEngine:
        engine = StubEngine(shell_store, name, **options)  # type: ignore[arg-type]
        started.append(engine)
        return await engine.start()

    yield start
    for engine in started:
        await engine.kill()
