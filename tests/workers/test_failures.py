"""Failing engines, a failing Redis, and many partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from parrot_mq.errors import ConfigError, EngineFailed, Overloaded, StoreUnavailable
from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore, connect
from parrot_mq.store.reader import engines
from parrot_mq.store.server import RedisServer
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker import persist, stepper

PATIENCE_S = 30.0
LONG = {"max_tokens": 400}


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
    asked = await real_desk.ask("echo:one two three")

    async def until_it_breaks() -> None:
        async with working(open_real, lambda: Broken(clock=InstantClock()), store=short) as worker:
            await real_desk.dispatch(asked, worker.engine_id)
            await asyncio.sleep(PATIENCE_S)

    with pytest.raises(ExceptionGroup) as raised:
        await until_it_breaks()
    (error,) = raised.value.exceptions
    assert isinstance(error, EngineFailed)
    assert "RuntimeError: CUDA error: device-side assert" in str(error)
    assert set((await engines(real_desk.store)).values()) == {None}
    async with working(open_real) as worker:
        while (await real_desk.request(asked)).state != "ready":
            await real_desk.scheduler.reap()
        await real_desk.dispatch(asked, worker.engine_id)
        assert await real_desk.value(asked) == "one two three"
        assert (await real_desk.request(asked)).attempt == 2


@pytest.mark.redis
async def test_an_idle_engine_whose_books_are_wrong_ends(
    real_desk: Any, open_real: Any, short: StoreSettings, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepper, "POLL_S", 0.05)
    engine = SimEngine(clock=InstantClock())

    async def until_it_ends() -> None:
        async with working(open_real, lambda: engine, store=short) as worker:
            asked = await real_desk.ask("echo:one", dispatch_to=worker.engine_id)
            assert await real_desk.value(asked) == "one"
            engine._batch._running_tokens += 1
            await asyncio.sleep(PATIENCE_S)

    with pytest.raises(ExceptionGroup) as raised:
        await until_it_ends()
    (error,) = raised.value.exceptions
    assert isinstance(error, EngineFailed)
    assert "1 tokens run, sequences have 0" in str(error)


async def test_a_sequence_the_engine_gave_up_is_retried(desk: Any, open_store: Any, working: Any) -> None:
    class Moody(SimEngine):
        def step(self) -> list[SequenceOutput]:
            for sequence_id in self.running:
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

        def open_it(settings: StoreSettings | None = None) -> Any:
            return connect(server.url, settings)

        async with await open_it() as store, working(open_it, lambda: engine) as worker:
            desk = make_desk(store)
            asked = await desk.ask("echo:survived", dispatch_to=worker.engine_id)
            await desk.until(asked, "running")
            server.kill()
            engine.permit()
            server.start()
            assert await desk.value(asked) == "survived"
            await desk.engine()
            after = await desk.ask("echo:and on", dispatch_to=worker.engine_id)
            assert await desk.value(after) == "and on"


@pytest.mark.redis
async def test_one_engine_serves_every_partition(open_real: Any, working: Any, make_desk: Any, gated: Any) -> None:
    settings, engine = StoreSettings(partitions=2), gated()
    async with await open_real(settings) as store, working(open_real, lambda: engine, store=settings) as worker:
        desks = [make_desk(store, number) for number in (0, 1)]
        asked = [await desk.ask(f"echo:{desk.number}", dispatch_to=worker.engine_id) for desk in desks]
        for desk, one in zip(desks, asked, strict=True):
            await desk.until(one, "running")
        await desks[1].producer.cancel_requests([asked[1].request])
        engine.permit()
        assert await desks[0].value(asked[0]) == "0"
        assert (await desks[1].resolved(asked[1])).error.kind == "Cancelled"
        after = await desks[1].ask("echo:again", dispatch_to=worker.engine_id)
        assert await desks[1].value(after) == "again"


async def test_results_wait_for_a_redis_whose_memory_is_full(
    desk: Any, open_store: Any, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, refused = EngineStore.complete_many, []

    async def full(self: EngineStore, completions: Any) -> Any:
        if not refused:
            refused.extend(completions)
            raise Overloaded("Redis is out of memory", retry_after_s=0.01)
        return await complete(self, completions)

    monkeypatch.setattr(EngineStore, "complete_many", full)
    async with working(open_store) as worker:
        asked = await desk.ask("echo:kept", dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "kept"
        assert len(refused) == 1


async def test_a_result_that_redis_never_takes_is_dropped_in_the_end(
    desk: Any,
    open_store: Any,
    working: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def away(self: EngineStore, completions: Any) -> Any:
        raise StoreUnavailable("Redis has not answered")

    async def dropped() -> bool:
        return any("is dropped, it will run again" in record.getMessage() for record in caplog.records)

    monkeypatch.setattr(EngineStore, "complete_many", away)
    monkeypatch.setattr(persist, "GIVE_UP_S", 0.0)
    async with working(open_store) as worker:
        asked = await desk.ask("echo:lost", dispatch_to=worker.engine_id)
        await eventually(dropped)
        assert (await desk.request(asked)).state == "running"


async def test_a_claim_that_redis_refuses_is_tried_again(
    desk: Any, open_store: Any, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = EngineStore.start, []

    async def full(self: EngineStore, engine_id: str, assignments: Any) -> Any:
        if not refused:
            refused.extend(assignments)
            raise Overloaded("Redis is out of memory", retry_after_s=0.01)
        return await start(self, engine_id, assignments)

    monkeypatch.setattr(EngineStore, "start", full)
    async with working(open_store) as worker:
        asked = await desk.ask("echo:claimed", dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "claimed"
        assert [one.request for one in refused] == [asked.request]


async def test_inputs_that_cannot_be_read_are_tried_again_elsewhere(
    desk: Any, open_store: Any, working: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: EngineStore, reference: str) -> Any:
        raise StoreUnavailable("Redis has not answered")

    monkeypatch.setattr(EngineStore, "fetch", away)
    async with working(open_store) as worker:
        asked = await desk.ask("echo:{{x}}", values={"x": "y" * 40_000}, dispatch_to=worker.engine_id)
        assert (await desk.until(asked, "waiting")).attempt == 1
