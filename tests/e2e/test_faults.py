"""kill -9 of each process while a graph runs: the graph completes, and each variable is set once."""

from __future__ import annotations

import asyncio
import collections
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

import parrot_mq as P
from parrot_mq.keys import LEADER, Keys
from parrot_mq.store.server import RedisServer
from tests.e2e.processes import WAIT_S, Pipeline, Service, pipeline, wait_for

pytestmark = [pytest.mark.redis, pytest.mark.slow]

NUM_CHAINS = 5
LENGTH = 8
KEYS = Keys(0)


@P.semantic_function
def append(text: P.Input, letter: str, longer: P.Output = P.output(max_tokens=8)):
    """Say it again. echo:{{text}}{{letter}}{{longer}}"""


@P.semantic_function
def join(left: P.Input, right: P.Input, both: P.Output = P.output(max_tokens=64)):
    """Join. echo:{{left}} {{right}}{{both}}"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as started:
        yield started


@pytest.fixture
def system(server: RedisServer, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(server.url, tmp_path) as made:
        yield made


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[P.Client]:
    async with P.connect(server.url) as connected:
        yield connected


def submit_graph(session: P.Session) -> tuple[P.SemanticVariable, str]:
    """Submit chains of slow steps and a tree that joins their ends; return the end and the value it must have."""
    ends = []
    for number in range(NUM_CHAINS):
        text = session.variable(f"{number}")
        for step in range(LENGTH):
            text = append(text, "abcdefgh"[step])
        ends.append(text)
    while len(ends) > 1:
        ends = [join(ends[0], ends[1]), *ends[2:]] if len(ends) % 2 else [
            join(left, right) for left, right in zip(ends[::2], ends[1::2], strict=True)
        ]  # fmt: skip
    return ends[0], " ".join(f"{number}abcdefgh"[: LENGTH + 1] for number in range(NUM_CHAINS))


def running(server: RedisServer) -> dict[str, str]:
    """Return the running requests with their engines."""
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        ids = connection.zrange(KEYS.leases, 0, -1)
        return {rid: connection.hget(KEYS.request(rid), "engine") or "" for rid in ids}


def done_ids(events: list[tuple[str, dict[str, str]]]) -> list[str]:
    return [request for _, fields in events if fields["event"] == "done" for request in fields["id"].split()]


def num_done(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        return len(done_ids(connection.xrange(KEYS.events)))


def check_set_once(server: RedisServer) -> collections.Counter[str]:
    """Assert that every request of the graph was completed exactly once; return to how many each event happened."""
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        events = connection.xrange(KEYS.events)
        done = collections.Counter(done_ids(events))
        assert len(done) == NUM_CHAINS * LENGTH + NUM_CHAINS - 1
        assert set(done.values()) == {1}
        assert connection.zcard(KEYS.live) == 0
        assert connection.zcard(KEYS.leases) == 0
        return sum((collections.Counter({f["event"]: len(f["id"].split())}) for _, f in events), collections.Counter())


async def finish(server: RedisServer, end: P.SemanticVariable, expected: str) -> collections.Counter[str]:
    assert await end.get(timeout_s=90) == expected
    return check_set_once(server)


def engine_of(system: Pipeline, engine_id: str) -> Service:
    """Return the process of an engine by the id it logged when it registered."""
    return next(service for service in system.services if f"engine {engine_id} serves" in service.log.read_text())


def kill_an_engine_at_work(server: RedisServer, system: Pipeline) -> list[str]:
    """Kill an engine that runs something, and return what it ran. It is suspended first, so that none can end."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for victim in set(running(server).values()):
            service = engine_of(system, victim)
            service.process.send_signal(signal.SIGSTOP)
            held = [rid for rid, engine in running(server).items() if engine == victim]
            if held:
                service.kill()
                return held
            service.process.send_signal(signal.SIGCONT)
    raise TimeoutError("no engine was found at work")


async def under_way(server: RedisServer) -> None:
    """Wait until the graph runs: some requests are done, some are running."""
    await asyncio.to_thread(wait_for, "a running graph", lambda: num_done(server) >= NUM_CHAINS and running(server))


async def test_engine_killed(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    system.scheduler(), system.engine(), system.engine()
    async with client.session(tenant="t") as session:
        end, expected = submit_graph(session)
        await under_way(server)
        held = await asyncio.to_thread(kill_an_engine_at_work, server, system)
        events = await finish(server, end, expected)
        assert events["redelivered"] + events["released"] >= len(held)


async def test_leading_scheduler_killed_with_a_standby(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    leader = system.scheduler()
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        await asyncio.to_thread(wait_for, "a leader", lambda: connection.get(LEADER))
        first = connection.get(LEADER)
        system.scheduler(), system.engine()
        async with client.session(tenant="t") as session:
            end, expected = submit_graph(session)
            await under_way(server)
            assert connection.get(LEADER) == first
            leader.kill()
            await finish(server, end, expected)
        assert connection.get(LEADER) not in (None, first)
        assert int(connection.get(KEYS.epoch) or 0) == 2


async def test_only_scheduler_killed_and_started_again(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    scheduler = system.scheduler()
    system.engine()
    async with client.session(tenant="t") as session:
        end, expected = submit_graph(session)
        await under_way(server)
        scheduler.kill()
        system.scheduler()
        await finish(server, end, expected)


async def test_redis_killed(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    system.scheduler(), system.engine()
    async with client.session(tenant="t") as session:
        end, expected = submit_graph(session)
        await under_way(server)
        port = server.port
        await asyncio.to_thread(server.kill)
        with pytest.raises(redis.ConnectionError), redis.Redis(port=port) as gone:
            gone.ping()
        await server.astart()
        assert server.port == port
        await finish(server, end, expected)


async def test_everything_killed_in_turn(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    scheduler, engine = system.scheduler(), system.engine()
    async with client.session(tenant="t") as session:
        end, expected = submit_graph(session)
        await under_way(server)
        engine.kill()
        system.engine()
        scheduler.kill()
        system.scheduler()
        await asyncio.to_thread(server.kill)
        await server.astart()
        await finish(server, end, expected)


async def test_sigterm_drains(server: RedisServer, system: Pipeline, client: P.Client) -> None:
    system.scheduler(), system.engine()
    async with client.session(tenant="t") as session:
        end, expected = submit_graph(session)
        await under_way(server)
        first = system.services[1]
        system.engine()
        assert await asyncio.to_thread(first.stop) == 0
        await finish(server, end, expected)
    assert system.stop() == [0] * 3
