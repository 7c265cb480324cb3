"""``explain()`` against a real scheduler: what keeps a request, along the whole chain, as a reader sees it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator

import pytest

import parrot_mq as P
from parrot_mq.keys import LEADER
from parrot_mq.messages import EngineState, Refusal, RequestState
from parrot_mq.scheduler import Scheduler
from parrot_mq.sdk.explain import MAX_DEPTH
from parrot_mq.sdk.explanation import span
from parrot_mq.store import Store
from parrot_mq.store.scheduler import take_leadership
from tests.scheduler.support import QUICK, StubEngine, until

Variable = P.SemanticVariable


@P.semantic_function
def draft(topic: P.Input, part: P.Input, text: P.Output = P.output(max_tokens=300)) -> None:
    """You are a careful writer of long reports. Write about {{topic}}, part {{part}}:{{text}}"""


@P.semantic_function
def merge(a: P.Input, b: P.Input, notes: P.Input, report: P.Output = P.output(max_tokens=100)) -> None:
    """Merge {{a}} and {{b}} with {{notes}}:{{report}}"""


@P.semantic_function
def judge(report: P.Input, verdict: P.Output = P.output(max_tokens=100)) -> None:
    """Judge {{report}}:{{verdict}}"""


def _review(draft: P.Input, report: P.Output = P.output(max_tokens=100)) -> None: ...


_review.__doc__ = "Reviewers are fair, brief, and never anonymous. " * 40 + "{{draft}} In short:{{report}}"
review = P.semantic_function(_review)


@contextlib.asynccontextmanager
async def leading(store: Store, *, lane_credits: int = 0) -> AsyncIterator[Scheduler]:
    """A scheduler that leads."""
    scheduler = Scheduler(store, dataclasses.replace(QUICK, lane_credits=lane_credits))
    task = asyncio.create_task(scheduler.run())
    await scheduler.leading.wait()
    yield scheduler
    scheduler.stop()
    await task


@contextlib.asynccontextmanager
async def engine(
    store: Store, name: str, *, slots: int = 1, state: EngineState = EngineState.READY, **fields: int
) -> AsyncIterator[str]:
    """An engine that claims what it is given, and ends nothing."""
    stub = StubEngine(store, name, slots=slots, **fields)
    stub.record = dataclasses.replace(stub.record, state=state)
    stub.gate.clear()
    await stub.start()
    yield name
    stub.gate.set()
    await stub.kill()


async def info(variable: Variable) -> P.RequestInfo:
    found = (await variable.explain()).producer
    assert found is not None
    return found


async def test_a_chain_is_explained_to_its_beginning(fake_store: Store, session: P.Session) -> None:
    topic, notes = session.variable("parrots", name="topic"), session.variable(name="notes")
    a, b = draft(topic, "1", session=session), draft(topic, "2", session=session)
    verdict = judge(merge(a, b, notes, session=session), session=session)
    await verdict.published()
    async with leading(fake_store), engine(fake_store, "e0", slots=4):
        reading = asyncio.create_task(verdict.get(timeout_s=60))

        async def runs() -> bool:
            return (await info(a)).state is (await info(b)).state is RequestState.RUNNING

        await until(runs)
        explanation = await verdict.explain()
        reading.cancel()
        (report,) = explanation.waits_for
        assert explanation.producer is not None
        assert report.producer is not None
        assert [waiting.id for waiting in report.waits_for] == [a.id, b.id, notes.id]
        first = report.waits_for[0].producer
        assert first is not None
        assert first.placed is not None
        assert (first.placed.reason, first.placed.aim.group_size) == ("group", 2)
        assert first.placed.aim.objective_of == verdict.id
        assert explanation.note == ""
        judging, merging = f"its request judge ({explanation.producer.id})", f"merge ({report.producer.id})"
        assert [waiting.parameter for waiting in report.waits_for] == ["a", "b", "notes"]
        assert explanation.asked_ms >= first.queued_ms > 0
        text, num_predicted = re.subn(r"; done in about \d[\d.]* m?s$", "", str(explanation), flags=re.MULTILINE)
        assert num_predicted == 2
        text = re.sub(r"(placed on e0) \d[\d.]* m?s ago", r"\1", text)
        assert text.splitlines() == [
            f"verdict ({verdict.id}) is pending: {judging} waits for 1 input: report",
            "  objective: latency",
            f"  waits for report ({report.id}): {merging} waits for 3 inputs: a, b, notes",
            f"    for latency, deduced from what is asked of verdict ({verdict.id})",
            *(
                line
                for name, made, waiting in zip("ab", (a, b), report.waits_for, strict=False)
                for line in (
                    f"    waits for text ({made.id}) as {name}: draft"
                    f" ({waiting.producer.id if waiting.producer else ''})"
                    " runs on engine e0, attempt 1",
                    f"      for latency, deduced from what is asked of verdict ({verdict.id})",
                    f"      in a task group: 2 parallel requests that feed {merging}",
                    "      placed on e0: its task group is there",
                )
            ),
            f"    waits for notes ({notes.id}): nothing produces it; it waits to be set by hand",
        ]


async def test_a_waiting_request_says_when_its_inputs_are_expected_and_where_it_is_prepared(
    fake_store: Store, session: P.Session
) -> None:
    text = draft("parrots", "1", session=session)
    report = review(text, session=session)
    verdict = judge(report, session=session)
    await verdict.published()
    async with leading(fake_store), engine(fake_store, "e0", slots=4, num_blocks=1000, num_free_blocks=1000):
        reading = asyncio.create_task(verdict.get(timeout_s=60))

        async def planned() -> bool:
            standing = (await info(report)).standing
            return standing is not None and bool(standing.engine and standing.aim.objective)

        await until(planned)
        said, last = (await info(report)).standing, (await info(verdict)).standing
        shown = str(await report.explain())
        reading.cancel()
    assert said is not None
    assert last is not None
    step_ms = 0.5 + 4 * 0.05
    assert said.ready_in_ms == pytest.approx(300 * step_ms)
    assert last.ready_in_ms == pytest.approx((300 + 100) * step_ms)
    assert said.planned_tokens >= 300
    assert shown.splitlines()[1:4] == [
        f"  for latency, deduced from what is asked of verdict ({verdict.id})",
        "  its inputs are expected within about 210 ms",
        f"  planned for e0, where {said.planned_tokens} tokens of its prompt are prepared",
    ]


async def test_a_ready_request_says_what_each_engine_says(fake_store: Store, session: P.Session) -> None:
    async with (
        engine(fake_store, "e0"),
        engine(fake_store, "e1", state=EngineState.DRAINING),
        leading(fake_store),
    ):
        outs = [judge(str(n), session=session) for n in range(6)]
        await outs[-1].published()

        async def settled() -> bool:
            return (await info(outs[0])).state is RequestState.RUNNING and (
                await info(outs[1])
            ).state is not RequestState.READY

        await until(settled)
        explanation = await outs[-1].explain()
        assert explanation.producer is not None
        standing = explanation.producer.standing
        assert standing is not None
        assert {answer.id: answer.refusal for answer in standing.engines} == {
            "e0": Refusal.FULL,
            "e1": Refusal.DRAINING,
        }
        assert standing.num_before == 3
        text = str(explanation)
        assert "none of the 2 engines that serve its model takes it now (1 full, 1 draining)" in text
        assert "in line: 3 requests of its tenant before it, 0 of others" in text
        assert "e0 is full (2 requests for 1 slots); it would be done there in" in text
        assert "e1 is draining" in text
        running = str(await outs[0].explain())
        assert "runs on engine e0" in running
        assert re.search(r"placed on e0 \d[\d.]* m?s ago: it is predicted to be done first there, in about \d", running)


async def test_no_engine_serves_its_model(fake_store: Store, session: P.Session) -> None:
    async with leading(fake_store):
        out = judge("x", session=session)
        await out.published()
        await until(lambda: _answered(out))
        assert "waits for an engine that serves its model: there is none" in (await out.explain()).reason


async def _answered(variable: Variable) -> bool:
    return (await info(variable)).standing is not None


async def test_without_a_scheduler_it_says_what_redis_shows(fake_store: Store, session: P.Session) -> None:
    async with engine(fake_store, "e0", slots=3):
        out = judge("x", session=session)
        explanation = await out.explain()
        assert explanation.note == "no scheduler leads: start one with `parrot-mq scheduler`"
        assert explanation.producer is not None
        assert [record.id for record in explanation.producer.serving] == ["e0"]
        assert "e0 says: ready, 0 of 3 slots taken" in str(explanation)
        assert "is ready and waits for an engine that serves its model" in explanation.reason


async def test_a_scheduler_that_does_not_answer_is_not_waited_for(
    fake_store: Store, session: P.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parrot_mq.sdk.explain.explain.__defaults__", (0.05,))
    assert await take_leadership(fake_store, "scheduler-1", 600.0)
    out = judge("x", session=session)
    explanation = await out.explain()
    assert explanation.note == "scheduler-1 leads, but has not answered within 0.05 s"
    assert explanation.producer is not None
    assert explanation.producer.standing is None
    await fake_store.client.delete(LEADER)


async def test_long_chains_and_diamonds_are_shown_once_and_bounded(fake_store: Store, session: P.Session) -> None:
    at = judge("x", session=session)
    for _ in range(3):
        at = merge(at, at, judge(at, session=session), session=session)
    text = str(await at.explain())
    assert text.count("(see above)") == 3
    assert len(text.splitlines()) < 30
    for _ in range(2 * MAX_DEPTH):
        at = judge(at, session=session)
    text = str(await at.explain())
    assert text.count("waits for") <= 2 * MAX_DEPTH + 2


async def test_what_went_by_a_lane_says_what_it_is_for(fake_store: Store, session: P.Session) -> None:
    async with engine(fake_store, "e0", slots=8), leading(fake_store, lane_credits=8):
        await until(lambda: fake_store.client.exists("pmq:{p0}:lanes"))
        first = judge("x", session=session)
        verdict = judge(first, session=session)
        await verdict.published()
        reading = asyncio.create_task(verdict.get(timeout_s=60))

        async def runs() -> bool:
            request = await info(first)
            return request.state is RequestState.RUNNING and bool(request.aim.objective)

        await until(runs)
        text = str(await first.explain())
        reading.cancel()
        assert f"for latency, deduced from what is asked of verdict ({verdict.id})" in text
        assert re.search(r"placed on e0 \d[\d.]* m?s ago: no other engine serves its model, and nothing waited", text)


async def test_a_request_that_is_done_needs_no_reason(fake_store: Store, session: P.Session) -> None:
    stub = await StubEngine(fake_store, "e0").start()
    async with leading(fake_store):
        out = judge("x", session=session)
        await out.get(timeout_s=30)
        done = await out.explain()
        assert done.producer is not None
        assert done.producer.placed is not None
        assert done.producer.placed.reason == "completion"
        assert str(done).splitlines() == [f"verdict ({out.id}) is ready: it is ready", "  objective: latency"]
        await stub.kill()


@pytest.mark.parametrize(
    ("duration_ms", "text"), [(0.44, "0.4 ms"), (12.3, "12 ms"), (999, "999 ms"), (1234, "1.2 s"), (61_000, "61.0 s")]
)
def test_durations(duration_ms: float, text: str) -> None:
    assert span(duration_ms) == text
