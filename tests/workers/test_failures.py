"""Cancellation, leases, zombies, failing engines and Redis servers, draining."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from parrot_mq.errors import ConfigError, EngineFailed, Fenced, StoreUnavailable
from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore, connect
from parrot_mq.store.server import RedisServer
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker import receiver

LONG = {"max_tokens": 400}


async def test_cancelling_aborts_within_a_step(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("Tell", sampling=LONG, dispatch_to=worker.engine_id)
        await desk.until(asked, "running")
        engine.permit(2)
        assert await desk.producer.cancel_requests([asked.request]) == 1

        async def aborted() -> bool:
            engine.permit(1)
            return engine.added != [] and engine.stats().num_running == 0

        await eventually(aborted)
        assert engine.stats().num_generated_tokens < 400
        assert (await desk.resolved(asked)).error.kind == "Cancelled"
        assert (await desk.request(asked)).state == "cancelled"


async def test_a_request_cancelled_in_the_queue_never_starts(
    desk: Any, open_store: Any, working: Any, gated: Any
) -> None:
    engine = gated(max_num_seqs=1)
    async with working(open_store, lambda: engine, heartbeat_s=0.02) as worker:
        first = await desk.ask("first", dispatch_to=worker.engine_id)
        await desk.until(first, "running")
        second = await desk.ask("second", dispatch_to=worker.engine_id)
        await desk.engine(lambda record: record.num_waiting >= 1)
        await desk.producer.cancel_requests([second.request])
        third = await desk.ask("third", dispatch_to=worker.engine_id)
        engine.permit()
        await desk.value(third)
        assert [sequence.segments[0].text for sequence in engine.added] == ["first", "third"]


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


@pytest.mark.redis
async def test_drain_finishes_what_runs_and_gives_back_what_waits(
    real_desk: Any, open_real: Any, working: Any, gated: Any
) -> None:
    engine = gated(max_num_seqs=1)
    async with working(open_real, lambda: engine, heartbeat_s=0.02) as worker:
        running = await real_desk.ask("echo:finished", dispatch_to=worker.engine_id)
        await real_desk.until(running, "running")
        waiting = await real_desk.ask("echo:later", dispatch_to=worker.engine_id)
        await real_desk.engine(lambda record: record.num_waiting >= 1)
        worker.stop()
        record = await real_desk.until(waiting, "ready")
        assert record.attempt == 0
        engine.permit()
        assert await real_desk.value(running) == "finished"
    assert await real_desk.reader.engine(worker.engine_id) is None


@pytest.mark.redis
async def test_what_does_not_finish_in_the_drain_is_given_back_as_no_attempt(
    real_desk: Any, open_real: Any, working: Any, gated: Any
) -> None:
    engine = gated()
    async with working(open_real, lambda: engine, drain_timeout_s=0.05) as worker:
        asked = await real_desk.ask("echo:never", dispatch_to=worker.engine_id)
        await real_desk.until(asked, "running")
        worker.stop()
        record = await real_desk.until(asked, "ready")
        assert record.attempt == 0
        engine.permit()


@pytest.mark.redis
async def test_a_control_message_drains(real_desk: Any, open_real: Any, working: Any, eventually: Any) -> None:
    async with working(open_real) as worker:
        await real_desk.scheduler.control(worker.engine_id, "drain", "")

        async def gone() -> bool:
            return await real_desk.reader.engine(worker.engine_id) is None

        await eventually(gone)


class Broken(SimEngine):
    """Raises out of its second step."""

    def step(self) -> list[SequenceOutput]:
        if self.stats().num_generated_tokens:
            raise RuntimeError("CUDA error: device-side assert")
        return super().step()


@pytest.mark.redis
async def test_an_exception_in_a_step_ends_the_engine_and_the_request_runs_elsewhere(
    real_desk: Any, open_real: Any, short: StoreSettings, working: Any
) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with working(open_real, lambda: Broken(clock=InstantClock()), store=short) as worker:
            asked = await real_desk.ask("echo:one two three", dispatch_to=worker.engine_id)
            await real_desk.until(asked, "waiting")
            broken = worker.engine_id
    (error,) = raised.value.exceptions
    assert isinstance(error, EngineFailed)
    assert "RuntimeError: CUDA error: device-side assert" in str(error)
    assert await real_desk.reader.engine(broken) is None
    async with working(open_real) as worker:
        while (await real_desk.request(asked)).state != "ready":
            await real_desk.scheduler.reap()
        await real_desk.dispatch(asked, worker.engine_id)
        assert await real_desk.value(asked) == "one two three"
        assert (await real_desk.request(asked)).attempt == 2


async def test_a_sequence_the_engine_gave_up_is_retried(desk: Any, open_store: Any, working: Any) -> None:
    class Moody(SimEngine):
        def step(self) -> list[SequenceOutput]:
            for sequence_id in list(self._running):
                self.abort(sequence_id)
            return super().step()

    async with working(open_store, lambda: Moody(clock=InstantClock())) as worker:
        asked = await desk.ask("Tell", sampling={"max_tokens": 9}, dispatch_to=worker.engine_id)
        record = await desk.until(asked, "waiting")
        assert record.attempt == 1


@pytest.mark.redis
async def test_a_model_that_cannot_be_loaded_is_that_error_and_leaves_nothing(open_real: Any, working: Any) -> None:
    def load() -> SimEngine:
        raise ConfigError("no such model")

    with pytest.raises(ExceptionGroup) as raised:
        async with working(open_real, load):
            pass
    assert [str(error) for error in raised.value.exceptions] == ["no such model"]
    async with await open_real() as store:
        assert [key async for key in store.client.scan_iter("*eng:*", _type="hash")] == []


@pytest.mark.redis
async def test_without_redis_the_worker_says_so(working: Any) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with working(lambda settings: connect("redis://127.0.0.1:1", settings, timeout_s=0.2)):
            pass
    assert isinstance(raised.value.exceptions[0], StoreUnavailable)


@pytest.mark.redis
async def test_a_restart_of_redis_is_survived(
    tmp_path: Path, working: Any, gated: Any, make_desk: Any, eventually: Any
) -> None:
    engine = gated()
    with RedisServer(tmp_path) as server:
        url, port = server.url, server.port
        async with (
            await connect(url) as store,
            working(lambda settings: connect(url, settings), lambda: engine) as worker,
        ):
            desk = make_desk(store)
            asked = await desk.ask("echo:survived", dispatch_to=worker.engine_id)
            await desk.until(asked, "running")
            server.kill()
            with RedisServer(tmp_path, port=port):
                engine.permit()
                assert await desk.value(asked) == "survived"
                await desk.engine()
                after = await desk.ask("echo:and on", dispatch_to=worker.engine_id)
                assert await desk.value(after) == "and on"
                worker.stop()

                async def gone() -> bool:
                    return await desk.reader.engine(worker.engine_id) is None

                await eventually(gone)


@pytest.mark.parametrize("told", [True, False])
async def test_what_a_lost_connection_swallowed_is_asked_for_again(
    desk: Any, open_store: Any, working: Any, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Redis counts entries as delivered although the reply never came; a client that reconnects does not even say so."""
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


async def test_an_unknown_control_message_is_logged_and_ignored(
    desk: Any, open_store: Any, working: Any, gated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:fine", dispatch_to=worker.engine_id)
        await desk.until(asked, "running")
        for kind in ("dance", "objective"):
            await desk.scheduler.control(worker.engine_id, kind, asked.request, text='{"kind": "latency"}')
        other = await desk.ask("echo:too", dispatch_to=worker.engine_id)
        await desk.until(other, "running")
        engine.permit()
        assert await desk.value(asked) == "fine"
    assert [r.getMessage() for r in caplog.records if "unknown kind" in r.getMessage()] == [
        "control message of unknown kind 'dance' ignored"
    ]
