"""A partition to experiment with, on each kind of server in turn, and a guard on every key that is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

from parrot_mq.keys import Keys
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from tests.store.lab import KINDS, Lab

CLUSTER_PARTITIONS = 3
"""Slots are shared evenly, so partitions 0 and 1 live on the second of the two masters and partition 2 on the first."""


def emptied(url: str) -> str:
    """Delete every key of the server at ``url``; its scripts stay, which is how servers are met in practice."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


async def assert_own_slot(clients: list[redis.asyncio.Redis], numbers: set[int]) -> None:
    """Every key that exists is in the slot of one of the partitions ``numbers``, by its hash tag."""
    prefixes = tuple(Keys(number).prefix for number in numbers)
    slots = {key_slot(prefix.encode()) for prefix in prefixes}
    for client in clients:
        async for key in client.scan_iter(count=1000):
            assert key.startswith(prefixes), f"{key} is in no slot of {sorted(numbers)}"
            assert key_slot(key.encode()) in slots


@pytest.fixture
async def cluster_store(cluster_urls: list[str]) -> AsyncIterator[Store]:
    """A store with several partitions on the two masters of a cluster."""
    async with await connect(cluster_urls[0], StoreSettings(partitions=CLUSTER_PARTITIONS)) as store:
        yield store


@pytest.fixture(params=KINDS)
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """One partition on each kind of server. On the cluster it is one whose master is not the node that was dialled.

    Whatever scripts the test has run, they have touched no slot but the partition's.
    """
    if request.param == "cluster":
        urls = request.getfixturevalue("cluster_urls")
        async with await connect(urls[1], StoreSettings(partitions=CLUSTER_PARTITIONS)) as store:
            built = Lab(store, 2)
            assert built.redis.get_connection_kwargs()["port"] == urlsplit(urls[0]).port
            yield built
            nodes = [redis.asyncio.Redis.from_url(url, decode_responses=True) for url in urls]
            await assert_own_slot(nodes, {built.number})
            for node in nodes:
                await node.aclose()
        return
    if request.param == "fake":
        store = await request.getfixturevalue("fakes")()
    else:
        url = request.getfixturevalue("redis_servers")(request.param)
        store = await connect(emptied(url), StoreSettings())
    async with store:
        yield Lab(store)
        await assert_own_slot([store.client], {0})


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "cluster")] + ["fake"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Lab, Lab]]:
    """Two partitions of one deployment; on the cluster they are on different masters."""
    settings = StoreSettings(partitions=3)
    if request.param == "fake":
        store = await request.getfixturevalue("fakes")(settings)
    elif request.param == "cluster":
        store = await connect(request.getfixturevalue("cluster_urls")[0], settings)
    else:
        store = await connect(emptied(request.getfixturevalue("redis_url")), settings)
    async with store:
        yield Lab(store, 0), Lab(store, 2)
        clients = [store.partitions[number].redis for number in (0, 2)]
        await assert_own_slot(clients, {0, 2})


@pytest.fixture
def fakes() -> Callable[..., object]:
    """Give ``connect_fake(settings)``: a store on a fakeredis of its own."""
    import fakeredis

    async def connect_fake(settings: StoreSettings | None = None) -> Store:
        client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), decode_responses=True, socket_timeout=None)
        return await connect("redis://fake", settings or StoreSettings(), client=client)

    return connect_fake


@pytest.fixture
async def real(redis_url: str) -> AsyncIterator[Lab]:
    """One partition on a real Redis, for what only real servers do."""
    async with await connect(redis_url, StoreSettings()) as store:
        yield Lab(store)
