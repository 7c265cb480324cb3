"""Cancellation, control messages, draining."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore

PATIENCE_S = 30.0
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
@pytest.mark.parametrize("hurried", [False, True])
async def test_what_does_not_finish_in_the_drain_is_given_back_as_no_attempt(
    real_desk: Any, open_real: Any, working: Any, gated: Any, hurried: bool
) -> None:
    """``hurried``: in the very moment in which its patience ends anyway."""
    engine = gated()
    async with working(open_real, lambda: engine, drain_timeout_s=0.05) as worker:
        asked = await real_desk.ask("echo:never", dispatch_to=worker.engine_id)
        await real_desk.until(asked, "running")
        worker.stop()
        if hurried:
            async with asyncio.timeout(10):
                while worker._patience is None or not worker._patience.expired():  # noqa: ASYNC110 (every loop turn)
                    await asyncio.sleep(0)
            worker.stop(now=True)
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


async def test_a_cancellation_that_overtakes_the_claim_is_obeyed(
    make_desk: Any, open_store: Any, working: Any, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of ``start`` is on its way when the request is cancelled, or its stream asked for."""
    start, held, engine = EngineStore.start, asyncio.Event(), gated()

    async def slow(self: EngineStore, engine_id: str, assignments: Any) -> Any:
        claims = await start(self, engine_id, assignments)
        await held.wait()
        return claims

    monkeypatch.setattr(EngineStore, "start", slow)
    without_offers = StoreSettings(offer_bytes=0)
    async with (
        await open_store(without_offers) as store,
        working(open_store, lambda: engine, store=without_offers, renew_s=60.0) as worker,
    ):
        desk = make_desk(store)
        cancelled = await desk.ask("echo:never", dispatch_to=worker.engine_id)
        streamed = await desk.ask("echo:one two")
        await desk.until(cancelled, "running")
        await desk.producer.cancel_requests([cancelled.request])
        await desk.controls_read(worker.engine_id)
        held.set()
        await desk.dispatch(streamed, worker.engine_id)
        engine.permit()
        assert await desk.value(streamed) == "one two"
        assert [sequence.segments[0].text for sequence in engine.added] == ["echo:one two"]
