"""Fixtures for the SDK's tests: a client with a service that answers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

import parrot_mq as P
from parrot_mq.sdk.blocking.portal import Portal
from parrot_mq.settings import ClientSettings
from parrot_mq.store import Store, connect
from tests.sdk.fake_service import FakeService

SETTINGS = ClientSettings(recheck_s=0.3)


@pytest.fixture
async def service(fake_store: Store) -> AsyncIterator[FakeService]:
    """A scheduler and an engine on a fakeredis."""
    async with FakeService(fake_store).serving() as serving:
        yield serving


@pytest.fixture
async def client(fake_store: Store) -> AsyncIterator[P.Client]:
    """A client on the same fakeredis."""
    async with P.connect(store=fake_store, settings=SETTINGS) as connected:
        yield connected


@pytest.fixture
async def session(client: P.Client) -> AsyncIterator[P.Session]:
    """A session; tests that need the ambient one use ``async with``."""
    opened = await client.session(tenant="acme").open()
    yield opened
    await opened.detach()


@pytest.fixture
def served_url(redis_url: str) -> Iterator[str]:
    """The address of a real Redis that a service in another thread works for."""
    portal = Portal()
    stop, ready = asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with await connect(redis_url) as store, FakeService(store).serving():
            ready.set()
            await stop.wait()

    async def end() -> None:
        stop.set()

    thread = threading.Thread(target=lambda: portal.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield redis_url
    portal.run(end())
    thread.join(20)
    portal.close()
