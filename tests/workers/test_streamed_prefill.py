"""Values that are followed while they are generated: what the engine is given, from where, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from parrot_mq.messages import Binding, FunctionRecord, PrefixHint, Segment, SegmentKind, Transform, TransformKind
from parrot_mq.settings import StoreSettings
from parrot_workers.engine.port import PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.worker import streamed_prefill
from parrot_workers.worker.transcript import Transcript
from tests.workers.conftest import GatedEngine

BLOCK = 4
LONG = {"max_tokens": 60}
REVIEW = FunctionRecord(
    "answer_it",
    (
        Segment(SegmentKind.CONSTANT, "Review this text, please, and say what you think of it: "),
        Segment(SegmentKind.INPUT, "draft"),
        Segment(SegmentKind.OUTPUT, "answer"),
    ),
)
"""What the desk makes of ``reviewed``."""
TEMPLATE = "Review this text, please, and say what you think of it: {{draft}}"


class HintedEngine(GatedEngine):
    """Computes ahead what it is told, and notes it. Blocks of four tokens."""

    def __init__(self, **options: Any) -> None:
        super().__init__(block_size=BLOCK, **options)
        self.prefilled: list[SequenceInput] = []
        self.outstanding: dict[str, SequenceInput] = {}
        self.holds = False
        """What is outstanding stays so."""

    def prefill(self, sequence: SequenceInput) -> None:
        keys = {name.split()[1] for name in (*self.outstanding, sequence.id)}
        assert len(keys) == len(self.outstanding) + 1, "one at a time of each value"
        self.prefilled.append(sequence)
        self.outstanding[sequence.id] = sequence

    def abort(self, sequence_id: str) -> None:
        if (sequence := self.outstanding.pop(sequence_id, None)) is not None:
            super().prefill(sequence)
        super().abort(sequence_id)

    def has_work(self) -> bool:
        return super().has_work() or bool(self.outstanding)

    def step(self) -> list[SequenceOutput]:
        if not self.holds:
            while self.outstanding:
                super().prefill(self.outstanding.popitem()[1])
        return super().step()

    def values(self) -> list[tuple[int, ...]]:
        """The ids of the followed value in each prefill, in order."""
        return [sequence.segments[-1].token_ids or () for sequence in self.prefilled]


@pytest.fixture
def hinted() -> Any:
    made: list[HintedEngine] = []

    def make(**options: Any) -> HintedEngine:
        made.append(HintedEngine(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.permit()


def hint(variable: str, key: str = "k", **more: Any) -> PrefixHint:
    return PrefixHint(key, "acme", REVIEW.digest, 1, follow=variable, **more)


async def pair(
    desk: Any, template: str = "Write a draft.", sampling: Any = LONG, reader: str = TEMPLATE, **more: Any
) -> tuple[Any, Any]:
    """Submit a draft, and a review of it that waits for it."""
    draft = await desk.ask(template, sampling=sampling, **more)
    review = await desk.ask(
        reader,
        values={"draft": "unused"},
        bindings={"draft": Binding(variable=draft.output)},
        sampling={"max_tokens": 5},
    )
    return draft, review


async def stepped(engine: HintedEngine, until: Callable[[], bool], eventually: Any) -> None:
    """Let the engine go on, step by step, until something holds."""

    async def probe() -> bool:
        if until():
            return True
        engine.permit(1)
        return False

    await eventually(probe)


def is_idle(worker: Any) -> bool:
    """Whether nothing is followed, and no trace of it is left."""
    books = worker._runner.streamed
    return (books._follows, books._by_variable, books._by_prefill) == ({}, {}, {})


@contextlib.asynccontextmanager
async def no_task_left(worker: Any, eventually: Any) -> AsyncIterator[None]:
    before = len(worker._group._tasks)
    yield

    async def as_before() -> bool:
        return is_idle(worker) and len(worker._group._tasks) <= before

    await eventually(as_before)


async def ran(desk: Any, worker: Any, engine: HintedEngine, review: Any) -> tuple[str, int]:
    """Run the review; return its text and how many tokens of its prompt were cached."""
    await desk.until(review, "ready")
    await desk.dispatch(review, worker.engine_id)
    engine.permit()
    value = await desk.value(review)
    return value, orjson.loads((await desk.request(review)).usage_json)["num_cached_tokens"]


def assert_grows_to(values: list[tuple[int, ...]], final: tuple[int, ...]) -> None:
    """Each prefill goes on from the one before, by a block or more, up to the value's own ids."""
    assert values[0] == ()
    assert values[-1] == final
    assert len(values) >= 3
    for before, after in itertools.pairwise(values):
        assert final[: len(after)] == after
        assert len(after) - len(before) >= BLOCK or after == final


async def test_a_value_that_a_prompt_begins_with_is_computed_as_it_comes(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    function = FunctionRecord("answer_it", (REVIEW.segments[1], REVIEW.segments[0], REVIEW.segments[2]))
    engine = hinted()
    async with working(open_store, lambda: engine) as worker:
        draft, review = await pair(desk, reader="{{draft}}Review this text, please, and say what you think of it: ")
        async with no_task_left(worker, eventually):
            await desk.dispatch(draft, worker.engine_id)
            await desk.until(draft, "running")
            about = dataclasses.replace(hint(draft.output), function=function.digest, end=0)
            await desk.scheduler.prefill(worker.engine_id, about)
            await stepped(engine, lambda: len(engine.values()) >= 4, eventually)
            engine.permit()
            await desk.until(draft, "done")
        _, cached = await ran(desk, worker, engine, review)
    record = await desk.reader.variable(draft.output)
    assert all(len(sequence.segments) == 1 for sequence in engine.prefilled)
    assert_grows_to([(), *engine.values()], tuple(record.token_ids))
    assert cached >= len(record.token_ids) - BLOCK


async def test_the_value_of_a_request_that_runs_here_is_computed_as_it_comes(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    outcomes = []
    for follows in (True, False):
        engine = hinted()
        async with working(open_store, lambda engine=engine: engine) as worker:
            draft, review = await pair(desk)
            async with no_task_left(worker, eventually):
                await desk.dispatch(draft, worker.engine_id)
                await desk.until(draft, "running")
                if follows:
                    await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
                    await stepped(engine, lambda engine=engine: len(engine.values()) >= 4, eventually)
                    assert (await desk.reader.variable(draft.output)).state == "pending"
                    assert await desk.reader.pieces(draft.output) == []
                    assert engine.prefilled[-1].segments[0] == PromptSegment(REVIEW.segments[0].text)
                    assert engine.prefilled[-1].salt == "tenant acme"

                async def done(draft: Any = draft, engine: Any = engine) -> bool:
                    engine.permit(1)
                    return (await desk.request(draft)).state == "done"

                await eventually(done)
            value = await desk.resolved(draft)
            if follows:
                await stepped(engine, lambda engine=engine: not engine.outstanding, eventually)
                assert_grows_to(engine.values(), value.token_ids)
                assert value.value.startswith(engine.prefilled[-2].segments[-1].text)
            else:
                assert engine.prefilled == []
            outcomes.append((value.value, await ran(desk, worker, engine, review)))
    (with_text, (with_review, with_cached)), (text, (review_text, cached)) = outcomes
    assert (with_text, with_review) == (text, review_text)
    num_tokens = -(-len(text) // 4)
    assert with_cached >= cached + num_tokens - 2 * BLOCK


async def test_the_value_of_a_request_that_runs_elsewhere_comes_by_its_stream(
    desk: Any, open_store: Any, working: Any, hinted: Any, gated: Any, eventually: Any
) -> None:
    engine, other = hinted(), gated()
    async with (
        working(open_store, lambda: other, emit_interval_ms=1.0) as producer,
        working(open_store, lambda: engine) as worker,
    ):
        draft, review = await pair(desk)
        async with no_task_left(worker, eventually):
            await desk.dispatch(draft, producer.engine_id)
            await desk.until(draft, "running")
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            engine.permit()
            for count in (20, 40):

                async def grown(count: int = count) -> bool:
                    if other.stats().num_generated_tokens < count:
                        other.permit(1)
                    return bool(engine.values() and len(engine.values()[-1]) >= count - BLOCK)

                await eventually(grown)
            other.permit()
            value = await desk.resolved(draft)

            async def whole() -> bool:
                return engine.values()[-1] == value.token_ids

            await eventually(whole)
        assert_grows_to(engine.values(), value.token_ids)
        _, cached = await ran(desk, worker, engine, review)
        assert cached >= len(value.value) // 4


async def test_a_producer_that_goes_on_elsewhere_is_followed_there(
    desk: Any, open_store: Any, working: Any, hinted: Any, gated: Any, eventually: Any
) -> None:
    """It is streamed, so that the second attempt goes on from what the first one has published."""
    engine, first, second = hinted(), gated(), gated()
    engine.permit()
    async with working(open_store, lambda: engine) as worker:
        draft, _ = await pair(desk)
        async with no_task_left(worker, eventually):
            async with working(open_store, lambda: first, emit_interval_ms=1.0) as producer:
                await desk.dispatch(draft, producer.engine_id)
                await desk.until(draft, "running")
                await desk.scheduler.prefill(worker.engine_id, hint(draft.output))

                async def grown() -> bool:
                    if first.stats().num_generated_tokens < 20:
                        first.permit(1)
                    return bool(engine.values() and len(engine.values()[-1]) >= 16)

                await eventually(grown)
                producer.stop(now=True)
                await desk.until(draft, "ready")
                first.permit()
            async with working(open_store, lambda: second, emit_interval_ms=1.0) as producer:
                await desk.dispatch(draft, producer.engine_id)
                second.permit()
                value = await desk.resolved(draft)

                async def whole() -> bool:
                    return engine.values()[-1] == value.token_ids

                await eventually(whole)
        assert second.added[0].forced_ids
        assert_grows_to(engine.values(), value.token_ids)


async def test_a_producer_the_engine_gives_up_is_followed_when_it_is_tried_again(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    engine = hinted()
    async with working(open_store, lambda: engine, store=StoreSettings(backoff_base_s=0.01)) as worker:
        draft, _ = await pair(desk)
        async with no_task_left(worker, eventually):
            await desk.dispatch(draft, worker.engine_id)
            await desk.until(draft, "running")
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            await stepped(engine, lambda: len(engine.values()) >= 3, eventually)
            worker._stepper.abort(engine.added[0].id)

            async def again() -> bool:
                engine.permit(1)
                await desk.scheduler.reap()
                return (await desk.request(draft)).state == "ready"

            await eventually(again)
            assert len(worker._runner.streamed) == 1
            await desk.dispatch(draft, worker.engine_id)
            engine.permit()
            value = await desk.resolved(draft)

            async def whole() -> bool:
                return engine.values()[-1] == value.token_ids

            await eventually(whole)
        assert len(engine.added) == 2


@pytest.mark.parametrize("end", ["producer cancelled", "released", "replaced", "drained"])
async def test_a_follow_ends(desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any, end: str) -> None:
    engine = hinted()
    async with working(open_store, lambda: engine, drain_timeout_s=0.0) as worker:
        draft, review = await pair(desk, sampling={"max_tokens": 1000})
        async with no_task_left(worker, eventually):
            await desk.dispatch(draft, worker.engine_id)
            await desk.until(draft, "running")
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            await stepped(engine, lambda: len(engine.values()) >= 2, eventually)
            engine.holds = True
            count = len(engine.prefilled) + (not engine.outstanding)
            await stepped(engine, lambda: len(engine.values()) == count, eventually)
            more = engine.stats().num_generated_tokens + 3 * BLOCK
            await stepped(engine, lambda: engine.stats().num_generated_tokens >= more, eventually)
            assert len(engine.values()) == count, "the engine has not done the one before"
            if end == "producer cancelled":
                await desk.producer.cancel_variable(draft.output)
                assert (await desk.resolved(review)).error.kind == "Cancelled"
                await stepped(engine, lambda: is_idle(worker), eventually)
            elif end == "released":
                await desk.scheduler.unretain(worker.engine_id, "k")
                await stepped(engine, lambda: is_idle(worker) and not engine.outstanding, eventually)
                assert engine.prefilled[count - 1].id in engine.aborted
            elif end == "replaced":
                asked = await desk.ask("echo: done", dispatch_to=worker.engine_id)
                engine.holds = False
                await stepped(engine, lambda: not engine.outstanding, eventually)
                await desk.scheduler.prefill(worker.engine_id, hint(asked.output))
                await stepped(engine, lambda: is_idle(worker), eventually)
            else:
                worker.stop()
                engine.permit()
        if end != "replaced":
            assert len(engine.prefilled) == count


async def test_what_may_belong_to_a_stop_string_is_held_back(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    engine = hinted()
    words = " ".join(f"word{n}" for n in range(30))
    async with working(open_store, lambda: engine) as worker:
        sampling = {"max_tokens": 60, "stop": ["END of it all"]}
        draft, review = await pair(desk, f"echo: {words} END of it all and more", sampling)
        async with no_task_left(worker, eventually):
            await desk.dispatch(draft, worker.engine_id)
            await desk.until(draft, "running")
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            await stepped(engine, lambda: engine.num_finished > 0 and is_idle(worker), eventually)
        value = await desk.resolved(draft)
        assert (value.value, value.token_ids) == (f" {words} ", ())
        assert BLOCK <= len(engine.values()[-1]) <= 30  # 30 words, then the four of the stop string
        assert all(value.value.startswith(s.segments[-1].text) for s in engine.prefilled[1:])
        _, cached = await ran(desk, worker, engine, review)
        assert cached >= 3 * BLOCK  # the known beginning; what was cut has no ids, and its text is tokenised anew


async def test_what_the_reader_will_not_see_is_not_followed(
    desk: Any, open_store: Any, working: Any, hinted: Any, gated: Any, eventually: Any
) -> None:
    """Transformed values, other models' values, values set by hand, and those that nobody knows."""
    engine, other = hinted(), gated()
    engine.permit()
    async with (
        working(open_store, lambda: engine) as worker,
        working(open_store, lambda: other) as elsewhere,
    ):
        async with no_task_left(worker, eventually):
            here, _ = await pair(desk, transform=Transform(TransformKind.STRIP))
            there, _ = await pair(desk, transform=Transform(TransformKind.STRIP))
            await desk.dispatch(there, elsewhere.engine_id)
            odd, _ = await pair(desk)
            await desk.dispatch(odd, elsewhere.engine_id)
            await desk.until(odd, "running")
            await desk.store.client.hset(
                desk.store.partition(0).keys.request(odd.request), "engine", f"x{elsewhere.engine_id}"
            )
            await desk.until(there, "running")
            given = (await desk.request(await desk.ask(TEMPLATE, values={"draft": "x"}))).inputs[0]
            followed = [here.output, there.output, odd.output, given, "0-v-nobody", "nonsense"]
            for number, variable in enumerate(followed):
                await desk.scheduler.prefill(worker.engine_id, hint(variable, f"k{number}"))

            async def all_begun() -> bool:
                return len(engine.prefilled) == len(followed)

            await eventually(all_begun)
        assert engine.values() == [()] * len(followed)
        assert await desk.reader.pieces(there.output) == []
        other.permit()


async def test_a_value_that_is_transformed_here_is_not_followed(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    engine = hinted()
    async with working(open_store, lambda: engine) as worker:
        draft, _ = await pair(desk, transform=Transform(TransformKind.STRIP))
        await desk.dispatch(draft, worker.engine_id)
        await desk.until(draft, "running")
        async with no_task_left(worker, eventually):
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            await stepped(engine, lambda: engine.stats().num_generated_tokens >= 6 * BLOCK, eventually)
            await stepped(engine, lambda: bool(engine.prefilled) and is_idle(worker), eventually)
        assert engine.values() == [()]


async def test_a_value_that_is_there_is_computed_at_once(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any
) -> None:
    engine = hinted()
    engine.permit()
    async with working(open_store, lambda: engine) as worker:
        draft, _ = await pair(desk)
        await desk.dispatch(draft, worker.engine_id)
        value = await desk.resolved(draft)
        async with no_task_left(worker, eventually):
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))

            async def whole() -> bool:
                return engine.values()[-1:] == [value.token_ids]

            await eventually(whole)
        assert engine.values() == [(), value.token_ids]


async def test_no_more_values_are_followed_than_there_is_room_for(
    desk: Any,
    open_store: Any,
    working: Any,
    hinted: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(streamed_prefill, "MAX_FOLLOWS", 1)
    engine = hinted()
    with caplog.at_level(logging.INFO, logger=streamed_prefill.__name__):
        async with working(open_store, lambda: engine) as worker:
            draft, _ = await pair(desk, sampling={"max_tokens": 1000})
            async with no_task_left(worker, eventually):
                await desk.dispatch(draft, worker.engine_id)
                await desk.until(draft, "running")
                await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
                await stepped(engine, lambda: len(engine.values()) >= 1, eventually)
                await desk.scheduler.prefill(worker.engine_id, hint(draft.output, "late"))

                def begun() -> bool:
                    return any(sequence.id.startswith("follow late") for sequence in engine.prefilled)

                await stepped(engine, begun, eventually)
                assert len(worker._runner.streamed) == 1
                engine.permit()
                await desk.resolved(draft)
    assert "only the beginning of late" in caplog.text


async def test_a_value_of_which_nothing_comes_is_given_up(
    desk: Any, open_store: Any, working: Any, hinted: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_prefill, "IDLE_S", 0.05)
    monkeypatch.setattr(streamed_prefill, "RECHECK_S", 0.01)
    engine = hinted()
    engine.permit()
    async with working(open_store, lambda: engine) as worker:
        draft, _ = await pair(desk)
        async with no_task_left(worker, eventually):
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))

            async def begun() -> bool:
                return bool(engine.prefilled)

            await eventually(begun)
        assert (await desk.request(draft)).state == "ready"


class DeafEngine(GatedEngine):
    """Takes no hints."""

    prefill = retain = release = None  # type: ignore[assignment]


async def test_an_engine_that_takes_no_hints_has_nothing_followed(
    desk: Any, open_store: Any, working: Any, eventually: Any
) -> None:
    engine = DeafEngine()
    async with working(open_store, lambda: engine) as worker:
        draft, _ = await pair(desk)
        async with no_task_left(worker, eventually):
            await desk.scheduler.prefill(worker.engine_id, hint(draft.output))
            await desk.controls_read(worker.engine_id)
        engine.permit()
        await desk.dispatch(draft, worker.engine_id)
        assert await desk.value(draft)


# Transcripts ----------------------------------------------------------------------------------------------------------


def said(*steps: tuple[int, str]) -> Transcript:
    transcript, token = Transcript(), 0
    for count, text in steps:
        transcript.extend(tuple(range(token, token + count)), text)
        token += count
    return transcript


def test_how_a_transcript_began() -> None:
    transcript = said((1, "a"), (2, ""), (1, "bcd"))
    assert [transcript.begins_with(tuple(range(n))) for n in range(6)] == [True, True, False, True, True, False]
    assert not transcript.begins_with((7,))
    assert [transcript.steps_to(n) for n in range(6)] == [0, 1, 2, 2, 3, 3]
    assert not transcript.cut(2)
    assert transcript.cut(3)
    assert (transcript.token_ids, transcript.text) == ([0, 1, 2], "a")
    assert transcript.cut(0)
    assert (transcript.token_ids, transcript.text) == ([], "")
    assert said().begins_with(())


def test_what_is_certain_of_a_transcript() -> None:
    held = streamed_prefill.Transcript  # the same class: its bound is what is tested here
    assert held is Transcript
    transcript = said(*[(1, "ab")] * 20)
    assert transcript.num_certain(()) == 20
    assert transcript.num_certain(("x",)) == 12  # 40 characters, of which the last 16 may be unfinished
    assert transcript.num_certain(("stop here",)) == 8
    assert said((1, "a")).num_certain(("stop",)) == 0
    assert said().num_certain(("stop",)) == 0
