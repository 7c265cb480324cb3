"""Redis forgets the scripts, is full, goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from parrot_mq.errors import Overloaded, StoreUnavailable
from parrot_mq.messages import LATENCY
from parrot_mq.settings import StoreSettings
from parrot_mq.store import connect
from parrot_mq.store import partition as partition_module
from parrot_mq.store.scheduler import take_leadership
from parrot_mq.store.scripts import NAMES, load_scripts
from parrot_mq.store.server import RedisServer
from tests.store.lab import FAILURE, Lab, on_real_servers


async def test_scripts_that_redis_has_forgotten_are_sent_again(lab: Lab) -> None:
    session = await lab.session()
    requests, outputs = await lab.chain(session, 2)
    for request in requests:
        await lab.redis.script_flush()
        await lab.run(request)
    await lab.redis.script_flush()
    assert await lab.producer.wants([(outputs[1], LATENCY)]) == ["ready"]
    assert await lab.text(outputs[1]) == "done"


@pytest.mark.parametrize("name", NAMES)
async def test_every_script_compiles_everywhere(lab: Lab, name: str) -> None:
    script = load_scripts(lab.partition.settings)[name]
    assert await lab.redis.script_load(script.source) == script.sha


# Memory


@asynccontextmanager
async def full(lab: Lab) -> AsyncIterator[None]:
    """Redis' memory is used up."""
    await lab.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await lab.redis.config_set("maxmemory", 0)


@on_real_servers
async def test_a_full_redis_takes_no_new_work(lab: Lab) -> None:
    session = await lab.session()
    made = lab.variable()
    await lab.submit(session, [made])
    given, output = lab.variable("x"), lab.variable()
    before = await lab.snapshot()
    calls: list[Callable[[], Awaitable[object]]] = [
        lab.session,
        lambda: lab.submit(session, [given, output], [lab.request([given], output)]),
        lambda: lab.producer.set_variable(made.id, lab.value("x")),
        lambda: lab.producer.set_variable(made.id, lab.value("x" * 40_000)),
        lambda: lab.producer.want(made.id, LATENCY),
    ]
    async with full(lab):
        for call in calls:
            with pytest.raises(Overloaded, match="maxmemory") as caught:
                await call()
            assert caught.value.retry_after_s > 0
    assert await lab.snapshot() == before
    await lab.submit(session, [given, output], [lab.request([given], output)])


@on_real_servers
async def test_a_full_redis_finishes_what_it_has(lab: Lab) -> None:
    """Engines stay alive and leases too, results arrive, failures are retried, and sessions can be deleted."""
    session, doomed = await lab.session(), await lab.session()
    requests, outputs = await lab.chain(session, 2)
    failing, released, lost, unknown = [(await lab.one(session))[0] for _ in range(4)]
    await lab.one(doomed)
    running = await lab.start(requests[0])
    claims = {request: await lab.start(request) for request in (failing, released, lost)}
    await lab.scheduler.raise_epoch(1)
    async with full(lab):
        await lab.heartbeat()
        await lab.heartbeat("e2")
        await lab.engine.renew("e1", [(running.request, running.fence)])
        await lab.engine.emit(running.request, running.fence, 0, [1], "a")
        await lab.complete(running)
        await lab.run(requests[1], engine="e2")
        await lab.engine.fail(failing, claims[failing].fence, FAILURE, retry=True)
        await lab.engine.release("e1", [(released, claims[released].fence)])
        await lab.kill_engine()
        await lab.scheduler.reap_engine("e1", [lost])
        await lab.scheduler.reap()
        await lab.scheduler.reject(unknown, FAILURE)
        await lab.producer.cancel_requests([released])
        await lab.scheduler.control("e2", "drain", "")
        await lab.scheduler.raise_epoch(2)
        lab.scheduler.epoch = 2
        assert await lab.scheduler.expired_sessions() == []
        await lab.producer.delete_session(doomed)
        await lab.engine.leave("e2")
    assert await lab.text(outputs[1]) == "done"
    assert await lab.states([failing, released, lost, unknown]) == ["waiting", "cancelled", "ready", "dead"]
    assert await lab.reader.session(doomed) is None


@on_real_servers
async def test_a_full_redis_keeps_its_leader(lab: Lab) -> None:
    assert await take_leadership(lab.store, "s1", 5.0)
    async with full(Lab(lab.store, 0)):
        assert await take_leadership(lab.store, "s1", 5.0)
        assert not await take_leadership(lab.store, "s2", 5.0)
    await lab.store.client.delete("pmq:{p0}:leader")


async def test_leadership_passes_on_when_it_is_dropped_or_runs_out(fake_store: object) -> None:
    store = fake_store
    assert await take_leadership(store, "s1", 5.0)  # type: ignore[arg-type]
    assert not await take_leadership(store, "s2", 5.0)  # type: ignore[arg-type]
    await store.client.delete("pmq:{p0}:leader")  # type: ignore[attr-defined]
    assert await take_leadership(store, "s2", 5.0)  # type: ignore[arg-type]


# Away


async def flaky(lab: Lab, *errors: Exception) -> str:
    """Call through ``robust`` what fails with ``errors`` first; return its answer."""
    remaining = list(errors)

    async def run() -> str:
        if remaining:
            raise remaining.pop(0)
        return "answer"

    return await lab.partition.robust(run)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        BusyLoadingError(),
        ReadOnlyError(),
        AskError("5 127.0.0.1:1"),
        TryAgainError("later"),
        ClusterDownError("down"),
        MasterDownError("down"),
        ResponseError("ASK 5 127.0.0.1:1"),
        ResponseError("TRYAGAIN Multiple keys request during rehashing of slot"),
        ResponseError("CLUSTERDOWN Hash slot not served"),
        ResponseError("MASTERDOWN Link with MASTER is down"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error).split(' ')[0]}",
)
async def test_what_passes_is_waited_out(fakes: Callable[..., Awaitable[object]], error: Exception) -> None:
    async with await fakes() as store:  # type: ignore[attr-defined]
        assert await flaky(Lab(store), error, error) == "answer"


@pytest.mark.parametrize("error", [OutOfMemoryError("x"), ResponseError("OOM command not allowed")])
async def test_out_of_memory_is_overloaded(fakes: Callable[..., Awaitable[object]], error: Exception) -> None:
    async with await fakes() as store:  # type: ignore[attr-defined]
        with pytest.raises(Overloaded):
            await flaky(Lab(store), error)


async def test_other_answers_are_raised(fakes: Callable[..., Awaitable[object]]) -> None:
    async with await fakes() as store:  # type: ignore[attr-defined]
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await flaky(Lab(store), ResponseError("WRONGTYPE"))


async def test_waiting_has_an_end(fakes: Callable[..., Awaitable[object]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_module, "RETRY_S", 0.1)
    async with await fakes() as store:  # type: ignore[attr-defined]
        with pytest.raises(StoreUnavailable, match="not answered"):
            await flaky(Lab(store), *[ConnectionResetError("gone")] * 100)


@pytest.mark.redis
async def test_a_redis_that_crashes_and_comes_back_has_lost_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, options=["--appendfsync", "always"])
    await server.astart()
    try:
        async with await connect(server.url, StoreSettings()) as store:
            lab = Lab(store)
            session = await lab.session()
            requests, outputs = await lab.chain(session, 2)
            claim = await lab.start(requests[0])
            server.kill()
            completing = asyncio.create_task(lab.complete(claim))
            await asyncio.sleep(0.1)
            assert not completing.done()
            await server.astart()
            await completing
            await lab.run(requests[1])
            assert await lab.text(outputs[1]) == "done"
            assert await lab.live(session) == 0
    finally:
        server.stop()
