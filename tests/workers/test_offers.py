"""Requests that begin while they are being claimed: what comes out is written as theirs, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parrot_mq.errors import Fenced, StoreUnavailable
from parrot_mq.messages import Transform, TransformKind
from parrot_mq.store import EngineStore
from parrot_mq.store.records import Assignment, Claim

Claims = list[Claim | None]
Start = Callable[[EngineStore, str, list[Assignment]], Awaitable[Claims]]


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Callable[[], Awaitable[Claims]]], Any]], None]:
    """Have claims go through a function that gets the real call: ``slow_start(async_function)``."""
    start: Start = EngineStore.start

    def install(through: Callable[[Callable[[], Awaitable[Claims]]], Any]) -> None:
        async def replaced(self: EngineStore, engine_id: str, assignments: list[Assignment]) -> Claims:
            assert all(assignment.offer is not None for assignment in assignments), "this test is about offers"
            answer: Claims = await through(lambda: start(self, engine_id, assignments))
            return answer

        monkeypatch.setattr(EngineStore, "start", replaced)

    return install


@pytest.fixture
def held_claims(slow_start: Any) -> asyncio.Event:
    """No claim reaches Redis before this is set."""
    released = asyncio.Event()

    async def through(start: Callable[[], Awaitable[Claims]]) -> Claims:
        await released.wait()
        return await start()

    slow_start(through)
    return released


async def test_a_result_that_comes_before_the_claim_is_the_claim(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, held_claims: asyncio.Event
) -> None:
    engine, claim_now = gated(), held_claims
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:early", dispatch_to=worker.engine_id)
        engine.permit()

        assert await desk.value(asked) == "early"
        record = await desk.request(asked)
        assert (record.state, record.attempt) == ("done", 1)
        claim_now.set()
        other = await desk.ask("echo:after", dispatch_to=worker.engine_id)
        assert await desk.value(other) == "after"
        assert (await desk.request(asked)).attempt == 1
        assert engine.aborted == []


async def test_a_failure_waits_for_the_claim(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, held_claims: asyncio.Event
) -> None:
    engine, claim_now = gated(), held_claims
    async with working(open_store, lambda: engine) as worker:
        transform = Transform(TransformKind.JSON_FIELD, "missing")
        asked = await desk.ask("echo:no json", dispatch_to=worker.engine_id, transform=transform)
        engine.permit()

        async def finished() -> bool:
            return engine.num_finished == 1

        await eventually(finished)
        await asyncio.sleep(0.05)  # time in which it would be written if it did not wait
        assert (await desk.request(asked)).state == "queued"
        claim_now.set()
        assert (await desk.resolved(asked)).error.kind == "TransformFailed"


async def test_what_turns_out_not_to_be_ours_is_taken_out_of_the_engine(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, held_claims: asyncio.Event
) -> None:
    engine, begun = gated(), held_claims
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:" + "never " * 100, dispatch_to=worker.engine_id)

        async def added() -> bool:
            return len(engine.added) == 1

        await eventually(added)
        # Without a control message, so that only the claim can tell.
        await desk.store.client.hset(desk.store.partition(0).keys.request(asked.request), "fence", "9.other")
        begun.set()

        async def aborted() -> bool:
            engine.permit(1)
            return [attempt.partition("/")[0] for attempt in engine.aborted] == [asked.request]

        await eventually(aborted)
        record = await desk.request(asked)
        assert (record.state, record.attempt) == ("queued", 0)
        assert (await desk.reader.variable(asked.output)).state == "pending"


async def test_while_the_claim_cannot_be_made_the_engine_goes_on(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, slow_start: Any
) -> None:
    engine, failures = gated(), [StoreUnavailable("Redis is away")] * 2

    async def finished() -> bool:
        return engine.num_finished == 1

    async def through(start: Callable[[], Awaitable[Claims]]) -> Claims:
        if failures:
            await eventually(finished)
            raise failures.pop()
        return await start()

    slow_start(through)
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:once", dispatch_to=worker.engine_id)
        engine.permit()
        assert await desk.value(asked) == "once"

        async def retried() -> bool:
            return not failures

        await eventually(retried)
        assert (await desk.request(asked)).attempt == 1
        assert (len(engine.added), engine.aborted) == (1, [])


async def test_an_engine_taken_for_dead_ends_what_has_begun(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, slow_start: Any
) -> None:
    engine = gated()

    async def added() -> bool:
        return len(engine.added) == 1

    async def through(_: Callable[[], Awaitable[Claims]]) -> Claims:
        await eventually(added)
        raise Fenced("the engine was taken for dead")

    slow_start(through)
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:" + "once " * 100, dispatch_to=worker.engine_id)

        async def aborted() -> bool:
            engine.permit(1)
            return len(engine.aborted) == 1

        await eventually(aborted)
        record = await desk.request(asked)
        assert (record.state, record.attempt) == ("queued", 0)  # it is the reaper's now


async def test_a_stream_asked_for_in_between_gets_all_of_it(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, held_claims: asyncio.Event
) -> None:
    engine, claim_now = gated(), held_claims
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:one two three", dispatch_to=worker.engine_id)

        async def added() -> bool:
            return len(engine.added) == 1

        async def finished() -> bool:
            return engine.num_finished == 1

        await eventually(added)
        await desk.producer.want(asked.output, stream=True)
        engine.permit()
        await eventually(finished)
        await asyncio.sleep(0.05)  # time in which the result would be written if it did not wait for its pieces
        assert (await desk.request(asked)).state == "queued"
        claim_now.set()
        assert await desk.value(asked) == "one two three"
        assert await desk.streamed(asked) == "one two three"


async def test_a_drain_lets_what_has_begun_finish(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, held_claims: asyncio.Event
) -> None:
    engine, claim_now = gated(), held_claims
    async with working(open_store, lambda: engine) as worker:
        asked = await desk.ask("echo:drained", dispatch_to=worker.engine_id)

        async def added() -> bool:
            return len(engine.added) == 1

        await eventually(added)
        worker.stop()
        await desk.engine_state(worker.engine_id, "draining")
        claim_now.set()
        engine.permit()
        assert await desk.value(asked) == "drained"
