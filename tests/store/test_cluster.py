"""What only a real Redis Cluster shows: homes of partitions, global keys, and slots that move."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, ResponseError

from parrot_mq.errors import StoreUnavailable
from parrot_mq.keys import ENGINES, LEADER
from parrot_mq.messages import EngineRecord, EngineState
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.cluster import at_address, is_cluster, moved_to, owner_url
from parrot_mq.store.engine import deregister, register
from parrot_mq.store.reader import engines
from parrot_mq.store.scheduler import drop_leadership, new_epoch, take_leadership
from tests.store.lab import Lab

pytestmark = pytest.mark.redis


def port(client: redis.asyncio.Redis) -> int:
    return int(client.get_connection_kwargs()["port"])


async def test_partitions_live_on_both_masters(cluster_store: Store, cluster_urls: list[str]) -> None:
    homes = [await owner_url(p.redis, cluster_urls[0], p.keys.epoch) for p in cluster_store.partitions]
    assert set(homes) == set(cluster_urls)
    for partition, home in zip(cluster_store.partitions, homes, strict=True):
        assert home.endswith(f":{port(partition.redis)}/0")
        assert port(partition.blocking) == port(partition.redis)


async def test_sessions_of_all_partitions_side_by_side(cluster_store: Store, cluster_urls: list[str]) -> None:
    """Each master holds the keys of its partitions and of no other."""
    for number in range(3):
        lab = Lab(cluster_store, number)
        requests, outputs = await lab.chain(await lab.session(), 2)
        await lab.run(requests[0])
        await lab.run(requests[1], f"from {number}")
        assert await lab.text(outputs[1]) == f"from {number}"
    held = []
    for url in cluster_urls:
        async with redis.asyncio.Redis.from_url(url, decode_responses=True) as node:
            held.append({key.split(":")[1] for key in [key async for key in node.scan_iter(count=1000)]})
    assert held == [{"{p2}"}, {"{p0}", "{p1}"}]


@pytest.mark.parametrize("dialled", [0, 1])
async def test_what_is_global_has_a_home_whichever_node_is_dialled(cluster_urls: list[str], dialled: int) -> None:
    assert key_slot(LEADER.encode()) == key_slot(ENGINES.encode())
    async with await connect(cluster_urls[dialled], StoreSettings(partitions=3)) as store:
        assert await take_leadership(store, "s1", 5.0)
        assert not await take_leadership(store, "s2", 5.0)
        assert await new_epoch(store) == 1
        await register(store, EngineRecord("e1", "sim", "m", EngineState.READY))
        assert list(await engines(store)) == ["e1"]
        assert [await partition.redis.get(partition.keys.epoch) for partition in store.partitions] == ["1"] * 3
        await deregister(store, "e1")
        await drop_leadership(store, "s1")
        assert await store.client.get(LEADER) is None


async def test_a_client_at_the_wrong_node_is_moved(cluster_store: Store, cluster_urls: list[str]) -> None:
    lab = Lab(cluster_store, 2)
    session = await lab.session()
    right, wrong = port(lab.redis), port(cluster_store.partitions[0].redis)
    assert right != wrong
    lab.partition.clients.move("127.0.0.1", wrong)
    assert port(lab.redis) == port(lab.partition.blocking) == wrong
    with pytest.raises(ResponseError, match="7752"):
        await lab.redis.get(lab.keys.epoch)
    request, _ = await lab.one(session)
    assert port(lab.redis) == port(lab.partition.blocking) == right
    assert await lab.state(request) == "ready"


async def test_many_calls_at_the_wrong_node_move_it_once(cluster_store: Store) -> None:
    lab = Lab(cluster_store, 2)
    session = await lab.session()
    clients = lab.partition.clients
    clients.move("127.0.0.1", port(cluster_store.partitions[0].redis))
    retired = len(clients._retired)
    await asyncio.gather(*(lab.one(session) for _ in range(10)))
    assert len(clients._retired) == retired + 2
    assert await lab.live(session) == 10


async def test_a_slot_that_moves_to_another_master_is_followed(cluster_store: Store, cluster_urls: list[str]) -> None:
    lab = Lab(cluster_store, 2)
    session = await lab.session()
    request, output = await lab.one(session)
    old, new = port(lab.redis), port(cluster_store.partitions[0].redis)
    try:
        await move_slot(cluster_urls, key_slot(lab.keys.epoch.encode()), old, new)
        await lab.run(request, "after the move")
        assert port(lab.redis) == new
        assert await lab.text(output) == "after the move"
        assert await lab.live(session) == 0
    finally:
        await move_slot(cluster_urls, key_slot(lab.keys.epoch.encode()), new, old)


async def move_slot(urls: list[str], slot: int, source: int, target: int) -> None:
    """Do what ``redis-cli --cluster reshard`` does for one slot."""
    nodes = {int(url.rsplit(":", 1)[1].split("/")[0]): redis.asyncio.Redis.from_url(url) for url in urls}
    ids = {at: (await node.execute_command("CLUSTER", "MYID")).decode() for at, node in nodes.items()}
    await nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    await nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    while keys := await nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 500):
        await nodes[source].execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
    for at in (target, source):
        await nodes[at].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    for node in nodes.values():
        await node.aclose()


async def test_a_slot_that_nobody_holds(cluster_store: Store, cluster_urls: list[str]) -> None:
    class Empty:
        async def execute_command(self, *args: str) -> list[object]:
            return []

    with pytest.raises(StoreUnavailable, match="holds slot"):
        await owner_url(Empty(), cluster_urls[0], "x")  # type: ignore[arg-type]


async def test_a_single_server_is_no_cluster(redis_url: str, cluster_urls: list[str]) -> None:
    for url, expected in [(redis_url, False), (cluster_urls[0], True)]:
        async with redis.asyncio.Redis.from_url(url) as client:
            assert await is_cluster(client) is expected


async def test_an_engine_that_reads_at_the_wrong_node_is_moved(cluster_store: Store) -> None:
    lab = Lab(cluster_store, 2)
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    await lab.dispatch(request)
    right = port(lab.redis)
    lab.partition.clients.move("127.0.0.1", port(cluster_store.partitions[0].redis))
    with pytest.raises(RedisConnectionError, match="moved"):
        await lab.receive()
    assert port(lab.partition.blocking) == right
    assert [assignment.request for assignment in await lab.receive()] == [request]


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381)),
        ("MOVED 3999 :6381", ("", 6381)),
        ("MOVED 3999 ::1:6381", ("::1", 6381)),
        ("WRONGTYPE Operation against a key", None),
        ("", None),
    ],
)
def test_where_a_slot_has_moved_to(text: str, home: tuple[str, int] | None) -> None:
    assert moved_to(ResponseError(text)) == home


def test_where_it_has_moved_to_as_newer_versions_of_redis_py_say() -> None:
    assert moved_to(MovedError("3999 127.0.0.1:6381")) == ("127.0.0.1", 6381)


def test_addresses_keep_credentials_and_options() -> None:
    url = "rediss://user:p%40ss@first:1/3?x=1"
    assert at_address(url, "second", 2) == "rediss://user:p%40ss@second:2/3?x=1"
    assert at_address(url, "", 2) == "rediss://user:p%40ss@first:2/3?x=1"
    assert at_address("redis://a:1", "::1", 2) == "redis://[::1]:2"
