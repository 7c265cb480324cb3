"""Heartbeats, leases and fences: what keeps a request from being lost or done twice."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from parrot_mq.errors import Fenced
from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker import receiver
from parrot_workers.worker.keeper import Keeper

PATIENCE_S = 30.0
LONG = {"max_tokens": 400}


@pytest.mark.redis
async def test_a_long_step_does_not_lose_the_lease(
    real_desk: Any, open_real: Any, short: StoreSettings, working: Any, gated: Any
) -> None:
    engine = gated()
    async with working(open_real, lambda: engine, store=short) as worker:
        asked = await real_desk.ask("echo:done", dispatch_to=worker.engine_id)
        await real_desk.until(asked, "running")
        await asyncio.sleep(short.lease_s * 2)  # the step thread hangs in a step all this time
        await real_desk.scheduler.reap()
        assert await real_desk.scheduler.reap_engine(worker.engine_id, [asked.request]) == (False, False)
        assert (await real_desk.request(asked)).state == "running"
        engine.permit()
        assert await real_desk.value(asked) == "done"
        assert (await real_desk.request(asked)).attempt == 1


@pytest.mark.redis
async def test_slow_loading_does_not_stop_the_heartbeat(
    real_desk: Any, open_real: Any, short: StoreSettings, working: Any, eventually: Any
) -> None:
    loaded = threading.Event()

    def load() -> SimEngine:
        assert loaded.wait(30)
        return SimEngine(clock=InstantClock())

    async def watch() -> None:
        async def listed() -> list[str]:
            return [key async for key in real_desk.store.client.scan_iter("*eng:sim-*", _type="hash")]

        (key,) = await eventually(listed)
        await asyncio.sleep(short.heartbeat_ttl_s * 2)
        assert await real_desk.store.client.hget(key, "state") == "starting"
        loaded.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        async with working(open_real, load, store=short):
            assert (await real_desk.engine()).state == "ready"


@pytest.mark.redis
async def test_a_stolen_request_is_aborted_and_cannot_be_written(
    real_desk: Any, open_real: Any, short: StoreSettings, working: Any, gated: Any, eventually: Any
) -> None:
    zombie, healthy = gated(), gated()
    async with (
        working(open_real, lambda: zombie, store=short) as first,
        working(open_real, lambda: healthy, store=short) as second,
    ):
        asked = await real_desk.ask("echo:once", dispatch_to=first.engine_id)
        await real_desk.until(asked, "running")
        await real_desk.store.client.zadd(real_desk.store.partitions[0].keys.leases, {asked.request: 1})
        await real_desk.scheduler.reap()  # its lease ran out while it was suspended
        await real_desk.dispatch(asked, second.engine_id)
        await real_desk.until(asked, "running")

        async def given_up() -> bool:
            zombie.permit(1)
            return zombie.stats().num_running == 0

        await eventually(given_up)
        healthy.permit()
        assert await real_desk.value(asked) == "once"
        record = await real_desk.request(asked)
        assert (record.attempt, record.engine) == (2, second.engine_id)


async def test_a_result_that_comes_too_late_is_dropped(
    desk: Any, open_store: Any, working: Any, gated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = gated()
    async with working(open_store, lambda: engine, renew_s=60.0) as worker:
        asked = await desk.ask("echo:zombie", dispatch_to=worker.engine_id)
        await desk.until(asked, "running")
        await desk.store.client.zadd(desk.store.partitions[0].keys.leases, {asked.request: 1})
        await desk.scheduler.reap()
        engine.permit()
        other = await desk.ask("echo:alive", dispatch_to=worker.engine_id)
        assert await desk.value(other) == "alive"
        assert (await desk.request(asked)).state == "ready"
    assert any("not ours any more" in record.message for record in caplog.records)


@pytest.mark.redis
async def test_an_engine_taken_for_dead_goes_on_under_another_id(
    real_desk: Any, open_real: Any, working: Any, gated: Any
) -> None:
    engine = gated()
    async with working(open_real, lambda: engine, heartbeat_s=0.02) as worker:
        former = worker.engine_id
        asked = await real_desk.ask("echo:again", dispatch_to=former)
        await real_desk.until(asked, "running")
        # What the reaper does to an engine that was suspended for too long.
        partition = real_desk.store.partitions[0]
        while await real_desk.scheduler.reap_engine(former, [asked.request]) != (True, False):
            await partition.redis.delete(partition.keys.engine(former))
        await real_desk.until(asked, "ready")
        engine.permit()
        record = await real_desk.engine(lambda record: record.id != former)
        assert worker.engine_id == record.id
        await real_desk.dispatch(asked, record.id)
        assert await real_desk.value(asked) == "again"


@pytest.mark.parametrize("told", [True, False])
async def test_what_a_lost_connection_swallowed_is_asked_for_again(
    desk: Any, open_store: Any, working: Any, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Redis counts entries as delivered whose reply was lost; a client that reconnects does not even say so."""
    receive, lost = EngineStore.receive, []

    async def lossy(self: EngineStore, *args: Any, **options: Any) -> Any:
        assignments, controls = await receive(self, *args, **options)
        if assignments and not lost:
            lost.extend(assignments)
            if told:
                raise RedisConnectionError("Connection reset by peer")
            return [], []
        return assignments, controls

    monkeypatch.setattr(EngineStore, "receive", lossy)
    monkeypatch.setattr(receiver, "RECHECK_S", 1e9 if told else 0.05)
    async with working(open_store) as worker:
        asked = await desk.ask("echo:found", dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "found"
        assert [assignment.request for assignment in lost] == [asked.request]


@pytest.mark.redis
async def test_streams_of_a_reaped_engine_are_fenced(open_real: Any) -> None:
    async with await open_real() as store:
        with pytest.raises(Fenced, match="took it for dead"):
            await EngineStore(store.partitions[0]).receive("sim-nobody", "0", block_ms=1)


@pytest.mark.redis
async def test_a_keeper_that_breaks_ends_the_engine(
    open_real: Any, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better no engine than one whose leases run out while it works."""

    async def broken(self: Keeper) -> None:
        raise RuntimeError("a bug in the keeper")

    async def until_it_breaks() -> None:
        async with working(open_real):
            await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr(Keeper, "renew", broken)
    with pytest.raises(ExceptionGroup) as raised:
        await until_it_breaks()
    assert "RuntimeError: a bug in the keeper" in str(raised.value.exceptions[0])
