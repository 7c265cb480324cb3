"""Equal deterministic requests share one sequence: each gets the whole output under its own fence, whoever leaves."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import ObjectiveKind, RequestSpec, SamplingParams, Transform, TransformKind
from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore
from parrot_mq.store.records import Claim, TokenPiece
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker import claimer, flights
from parrot_workers.worker.flights import Flights, flight_key
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.run import Run

SAMPLING = {"max_tokens": 12}


def joined(pieces: list[TokenPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[TokenPiece]) -> list[int]:
    """The ids of a stream of which every token is there once, in order."""
    found: list[int] = []
    for piece in pieces:
        assert piece.last or piece.offset == len(found)
        found += piece.token_ids
    return found


async def begun(engine: Any, desk: Any, asked: list[Any], num_tokens: int, eventually: Any) -> None:
    """Wait until all of ``asked`` run and the engine has made ``num_tokens`` tokens."""
    for one in asked:
        await desk.until(one, "running")
    if num_tokens:
        engine.permit(num_tokens)

    async def made() -> bool:
        return engine.stats().num_generated_tokens == num_tokens

    await eventually(made)


async def test_ten_equal_calls_run_once(desk: Any, open_store: Any, working: Any, gated: Any) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        asked = [await desk.ask("Tell", sampling=SAMPLING) for _ in range(10)]
        await asyncio.gather(*(desk.dispatch(one, worker.engine_id) for one in asked))
        for one in asked:
            await desk.until(one, "running")
        engine.permit()
        values = {(await desk.resolved(one)).value for one in asked}
        assert len(values) == 1
        assert len(values.pop().split()) == 12
        assert engine.stats().num_generated_tokens == 12
        assert len(engine.added) == 1
        assert engine.aborted == []
        usages = [orjson.loads((await desk.request(one)).usage_json) for one in asked]
        assert [usage["num_output_tokens"] for usage in usages] == [12] * 10
        assert sum(not usage["shared"] for usage in usages) == 1
        records = [await desk.request(one) for one in asked]
        assert len({record.fence for record in records}) == 10
        assert {record.attempt for record in records} == {1}


@pytest.mark.parametrize(
    ("first", "second", "runs"),
    [
        ({}, {}, 1),
        ({"sampling": {"temperature": 0.7, "seed": 3}}, {"sampling": {"temperature": 0.7, "seed": 3}}, 1),
        ({"sampling": {"temperature": 0.7, "seed": 3}}, {"sampling": {"temperature": 0.7, "seed": 4}}, 2),
        ({"sampling": {"temperature": 0.7}}, {"sampling": {"temperature": 0.7}}, 2),
        ({"sampling": {"max_tokens": 5}}, {"sampling": {"max_tokens": 6}}, 2),
        ({"sampling": {"stop": ["a"]}}, {}, 2),
        ({"share_prefixes": True}, {}, 2),
        ({"transform": Transform(TransformKind.STRIP)}, {}, 1),
        ({"plan": '{"flight":""}'}, {}, 2),
        ({}, {"plan": '{"flight":""}'}, 2),
        ({"plan": '{"flight":"a"}'}, {"plan": '{"flight":"b"}'}, 1),
    ],
)
async def test_what_is_equal(
    desk: Any, open_store: Any, working: Any, gated: Any, first: dict[str, Any], second: dict[str, Any], runs: int
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        asked = [await desk.ask("Tell", dispatch_to=worker.engine_id, **options) for options in (first, second)]
        for one in asked:
            await desk.until(one, "running")
        engine.permit()
        for one in asked:
            assert await desk.value(one)
        assert len(engine.added) == runs


async def test_tenants_never_share_an_output(
    desk: Any, make_desk: Any, open_store: Any, working: Any, gated: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        other = make_desk(desk.store, tenant="other")
        asked = [
            (of, await of.ask("Tell", dispatch_to=worker.engine_id, share_prefixes=True)) for of in (desk, other, desk)
        ]
        for of, one in asked:
            await of.until(one, "running")
        engine.permit()
        for of, one in asked:
            await of.value(one)
        assert len(engine.added) == 2


async def test_the_worker_can_be_told_to_run_each(desk: Any, open_store: Any, working: Any) -> None:
    engine = SimEngine(clock=InstantClock())
    async with working(open_store, lambda: engine, single_flight=False) as worker:
        asked = [await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id) for _ in range(3)]
        for one in asked:
            await desk.value(one)
        assert engine.stats().num_generated_tokens == 36


async def test_each_applies_its_own_transform(desk: Any, open_store: Any, working: Any, gated: Any) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        first = Transform(TransformKind.REGEX, r"(\w+) (\w+)")
        second = Transform(TransformKind.REGEX, r"\w+ (\w+)")
        missing = Transform(TransformKind.JSON_FIELD, "no")
        asked = [
            await desk.ask("echo: one two", dispatch_to=worker.engine_id, transform=transform)
            for transform in (first, second, missing, None)
        ]
        for one in asked:
            await desk.until(one, "running")
        engine.permit()
        found = [await desk.resolved(one) for one in asked]
        assert [record.value for record in found] == ["one", "two", None, " one two"]
        assert found[2].error.kind == "TransformFailed"
        assert len(engine.added) == 1


async def test_one_that_joins_late_streams_everything(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine, emit_interval_ms=1.0) as worker:
        first = await desk.ask("Tell", sampling=SAMPLING)
        await desk.producer.want(first.output, stream=True)
        await desk.dispatch(first, worker.engine_id)
        await begun(engine, desk, [first], 5, eventually)
        late = await desk.ask("Tell", sampling=SAMPLING)
        await desk.producer.want(late.output, stream=True)
        await desk.dispatch(late, worker.engine_id)
        seen = await desk.streamed(late)
        assert len(seen.split()) >= 4
        engine.permit()
        for one in (first, late):
            value = await desk.resolved(one)
            pieces = await desk.reader.pieces(one.output)
            assert joined(pieces) == value.value
            assert ids_of(pieces) == list(value.token_ids)
        assert engine.stats().num_generated_tokens == 12


@pytest.mark.parametrize("leaver", range(3))
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
async def test_whoever_is_cancelled_the_others_go_on(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, leaver: int, num_tokens: int
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine, emit_interval_ms=1.0) as worker:
        asked = []
        for _ in range(3):
            asked.append(await desk.ask("Tell", sampling=SAMPLING))
            await desk.producer.want(asked[-1].output, stream=True)
            await desk.dispatch(asked[-1], worker.engine_id)
        await begun(engine, desk, asked, num_tokens, eventually)
        assert await desk.producer.cancel_requests([asked[leaver].request]) == 1
        assert (await desk.resolved(asked[leaver])).error.kind == "Cancelled"
        await desk.controls_read(worker.engine_id)
        engine.permit()
        for one in asked[:leaver] + asked[leaver + 1 :]:
            value = await desk.resolved(one)
            assert len(value.value.split()) == 12
            assert ids_of(await desk.reader.pieces(one.output)) == list(value.token_ids)
        assert engine.stats().num_generated_tokens == 12
        assert engine.aborted == []


async def test_with_the_last_of_them_the_sequence_ends(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine) as worker:
        asked = [await desk.ask("Tell", sampling={"max_tokens": 400}, dispatch_to=worker.engine_id) for _ in range(3)]
        await begun(engine, desk, asked, 2, eventually)
        await desk.producer.cancel_requests([one.request for one in asked])

        async def aborted() -> bool:
            engine.permit(1)
            return len(engine.aborted) == 1 and engine.stats().num_running == 0

        await eventually(aborted)
        assert engine.stats().num_generated_tokens < 400
        assert not worker._runner.flights._of
        assert len(worker._runner.table) == 0
        engine.permit()
        again = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id)
        assert len((await desk.value(again)).split()) == 12


async def test_a_leader_whose_claim_is_refused_leaves_its_tokens(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader has begun from its offer, and is another engine's by the time of its claim."""
    engine, held, refused = gated(), asyncio.Event(), []
    start = EngineStore.start

    async def slow(self: EngineStore, engine_id: str, assignments: Any) -> list[Claim | None]:
        await held.wait()
        claims = await start(self, engine_id, assignments)
        refused.extend(claim is None for claim in claims)
        return claims

    async with working(open_store, lambda: engine) as worker:
        warm = await desk.ask("Tell", sampling={"max_tokens": 1}, dispatch_to=worker.engine_id)
        engine.permit(1)
        await desk.value(warm)
        monkeypatch.setattr(EngineStore, "start", slow)
        asked = [await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id) for _ in range(2)]

        async def both() -> bool:
            return bool(worker._runner.flights.num_followers == 1)

        await eventually(both)
        await desk.store.client.hset(desk.store.partition(0).keys.request(asked[0].request), "fence", "9.other")
        engine.permit(3)
        held.set()

        async def left() -> bool:
            return bool(worker._runner.flights.num_followers == 0)

        await eventually(left)
        engine.permit()
        assert len((await desk.value(asked[1])).split()) == 12
        assert sorted(refused) == [False, True]
        assert engine.stats().num_generated_tokens == 13
        assert (await desk.request(asked[0])).state == "queued"


async def test_a_lost_lease_takes_one_out(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any, short: StoreSettings
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine, store=short, renew_s=0.05) as worker:
        asked = [await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id) for _ in range(2)]
        await begun(engine, desk, asked, 3, eventually)
        await desk.store.client.hset(desk.store.partition(0).keys.request(asked[0].request), "fence", "9.other")

        async def left() -> bool:
            return bool(worker._runner.flights.num_followers == 0)

        await eventually(left)
        engine.permit()
        assert len((await desk.value(asked[1])).split()) == 12
        assert engine.stats().num_generated_tokens == 12


async def test_what_the_engine_gives_up_is_retried_for_each(desk: Any, open_store: Any, working: Any) -> None:
    class Moody(SimEngine):
        """Ends its first sequence unasked."""

        def step(self) -> list[SequenceOutput]:
            outputs = super().step()
            if self.stats().num_generated_tokens == 3 and self.running:
                self.abort(self.running[0])
            return outputs

    engine = Moody(clock=InstantClock())
    quick = StoreSettings(backoff_base_s=0.01)
    async with working(open_store, lambda: engine, store=quick) as worker:
        asked = [await desk.ask("Tell", sampling=SAMPLING, plan='{"flight":"f"}') for _ in range(3)]
        await asyncio.gather(*(desk.dispatch(one, worker.engine_id) for one in asked))
        for one in asked:
            while (await desk.request(one)).state not in ("ready", "done"):
                await desk.scheduler.reap()
        again = [one for one in asked if (await desk.request(one)).state == "ready"]
        assert again
        for one in again:
            assert (await desk.request(one)).attempt == 1
            await desk.dispatch(one, worker.engine_id)
        for one in asked:
            assert len((await desk.value(one)).split()) == 12


async def test_a_retry_joins_only_where_its_stream_began_alike(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    retried = await desk.ask("Tell", sampling=SAMPLING)
    await desk.producer.want(retried.output, stream=True)
    first = gated()
    async with working(open_store, lambda: first, emit_interval_ms=1.0) as worker:
        await desk.dispatch(retried, worker.engine_id)
        first.permit(4)
        await desk.streamed(retried)
        worker.stop(now=True)
        await desk.until(retried, "ready")
        first.permit()
    published = ids_of(await desk.reader.pieces(retried.output))
    engine = gated()
    async with working(open_store, lambda: engine, emit_interval_ms=1.0) as worker:
        fresh = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id)
        await begun(engine, desk, [fresh], 6, eventually)
        await desk.dispatch(retried, worker.engine_id)
        await desk.until(retried, "running")
        engine.permit()
        value = await desk.resolved(retried)
        pieces = await desk.reader.pieces(retried.output)
        assert ids_of(pieces)[: len(published)] == published
        assert ids_of(pieces) == list(value.token_ids)
        assert joined(pieces) == value.value == (await desk.resolved(fresh)).value
        assert len(engine.added) == 1

    other = gated()
    async with working(open_store, lambda: other, emit_interval_ms=1.0) as worker:
        odd = await desk.ask("Tell", sampling=SAMPLING)
        await desk.producer.want(odd.output, stream=True)
        keys = desk.store.partition(0).keys
        await desk.store.client.xadd(keys.tokens(odd.output), {"fence": "1.x", "offset": 0, "ids": "7 8", "text": "!"})
        fresh = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id)
        await begun(other, desk, [fresh], 6, eventually)
        await desk.dispatch(odd, worker.engine_id)
        await desk.until(odd, "running")
        other.permit()
        await desk.value(odd)
        await desk.value(fresh)
        assert [sequence.forced_ids for sequence in other.added] == [(), (7, 8)]


async def test_a_full_engine_takes_what_is_equal_to_something_it_runs(
    desk: Any, open_store: Any, working: Any, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gated(max_num_seqs=1)
    async with working(open_store, lambda: engine) as worker:
        plan = '{"flight":"aa","rank":1}'
        first = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id, plan=plan)
        await desk.until(first, "running")
        other = await desk.ask("echo:other", dispatch_to=worker.engine_id, plan='{"rank":0}')
        equal = [
            await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id, plan=plan.replace("1", "2"))
            for _ in range(3)
        ]
        for one in equal:
            await desk.until(one, "running")
        assert (await desk.request(other)).state == "queued"
        engine.permit()
        assert len({await desk.value(one) for one in (first, *equal)}) == 1
        assert await desk.value(other) == "other"
        assert [sequence.segments[0].text for sequence in engine.added] == ["Tell", "echo:other"]


async def test_there_is_a_bound_to_those_who_share(
    desk: Any, open_store: Any, working: Any, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "MAX_FOLLOWERS", 2)
    monkeypatch.setattr(claimer, "MAX_FOLLOWERS", 2)
    engine = gated(max_num_seqs=2)
    async with working(open_store, lambda: engine) as worker:
        plan = '{"flight":"aa"}'
        asked = [await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id, plan=plan) for _ in range(6)]
        for one in asked[:4]:
            await desk.until(one, "running")
        engine.permit()
        assert len({await desk.value(one) for one in asked}) == 1
        assert 2 <= len(engine.added) <= 4


# The books alone ------------------------------------------------------------------------------------------------------


class FakeStepper:
    """Takes what the flights ask of the engine."""

    def __init__(self) -> None:
        self.running: dict[str, SequenceInput] = {}
        self.num_added = 0
        self.objectives: dict[str, ObjectiveKind] = {}
        self.aborted: list[str] = []

    def add(self, sequence: SequenceInput) -> None:
        assert sequence.id not in self.running
        assert sequence.id not in self.aborted, "the engine has not ended it yet"
        self.running[sequence.id] = sequence
        self.objectives[sequence.id] = sequence.objective
        self.num_added += 1

    def abort(self, sequence_id: str) -> None:
        del self.running[sequence_id]
        self.aborted.append(sequence_id)

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        self.objectives[sequence_id] = objective


def a_run(number: int, objective: ObjectiveKind = ObjectiveKind.LATENCY, fence: str = "1.a") -> Run:
    spec = RequestSpec("", "", "", "", 0, {}, "", "")
    claim = Claim(f"r{number}", fence, 1, "s", "t", "{}", (), streamed=True)
    return Run(claim, spec, Plan(objective=objective), cast(Any, None), 0.0, 0.0, streamed=True)


def sequence_for(run: Run, prompt: str = "p", **sampling: Any) -> SequenceInput:
    return SequenceInput(run.id, (PromptSegment(prompt),), SamplingParams(**sampling), run.objective, salt="t")


def test_a_sequence_has_the_strictest_objective_of_those_who_share_it() -> None:
    stepper = FakeStepper()
    books = Flights(cast(Any, stepper), is_on=True)
    slow, quick, due = (
        a_run(n, kind)
        for n, kind in enumerate((ObjectiveKind.THROUGHPUT, ObjectiveKind.LATENCY, ObjectiveKind.THROUGHPUT))
    )
    seen = []
    for run in (slow, quick, due):
        books.board(run, sequence_for(run))
        seen.append(stepper.objectives[slow.id])
    books.set_objective(due, ObjectiveKind.DEADLINE)
    seen.append(stepper.objectives[slow.id])
    books.leave(due)
    seen.append(stepper.objectives[slow.id])
    books.leave(quick)
    seen.append(stepper.objectives[slow.id])
    expected = ["throughput", "latency", "latency", "deadline", "latency", "throughput"]
    assert [kind.value for kind in seen] == expected


def test_an_attempt_that_comes_back_while_its_sequence_serves_others_gets_a_name_of_its_own() -> None:
    stepper = FakeStepper()
    books = Flights(cast(Any, stepper), is_on=True)
    first, second = a_run(1), a_run(2)
    books.board(first, sequence_for(first))
    books.board(second, sequence_for(second))
    books.leave(first)
    again = a_run(1)
    books.board(again, sequence_for(again, "another prompt"))
    assert len(stepper.running) == 2
    books.leave(again)
    books.leave(second)
    third = a_run(1)
    books.board(third, sequence_for(third))
    assert third.id not in stepper.running  # the engine has not said that the first one of this name is over
    assert books.advance(SequenceOutput(first.id, finish=FinishReason.ABORTED)) == []
    assert books.of(third) is not None
    assert flight_key("t", sequence_for(third)) == flight_key("t", sequence_for(a_run(9)))


ACTION = st.sampled_from(["join", "leave", "step", "stream", "objective", "end"])
ACTIONS = st.lists(st.tuples(ACTION, st.integers(0, 99)))


@settings(max_examples=200, deadline=None)
@given(ACTIONS, st.randoms(use_true_random=False))
def test_every_member_gets_every_token_once_whoever_leaves(actions: list[tuple[str, int]], dice: random.Random) -> None:
    """Runs of three prompts join, leave, stream and end in any order; each sees its prompt's tokens 0, 1, 2, ..."""
    stepper = FakeStepper()
    books = Flights(cast(Any, stepper), is_on=True)
    numbers = itertools.count()
    members: dict[Run, int] = {}
    """Runs that are in, and tokens that their stream has seen."""
    said: dict[str, int] = {}

    def see(run: Run) -> None:
        piece = run.take_piece()
        if piece is not None:
            assert piece.offset == members[run]
            assert list(piece.token_ids) == list(range(piece.offset, piece.offset + len(piece.token_ids)))
            assert piece.text == "".join(f"{n} " for n in piece.token_ids)
            members[run] += len(piece.token_ids)

    for action, number in actions:
        runs = list(members)
        if action == "join":
            run = a_run(next(numbers), list(ObjectiveKind)[number % 5])
            books.board(run, sequence_for(run, f"prompt {number % 3}"))
            members[run] = 0
        elif action == "leave" and runs:
            run = runs[number % len(runs)]
            books.leave(run)
            del members[run]
        elif action in ("step", "end") and stepper.running:
            sequence_id = list(stepper.running)[number % len(stepper.running)]
            at = said.get(sequence_id, 0)
            said[sequence_id] = at + 1
            finish = FinishReason.STOP if action == "end" else None
            told = books.advance(SequenceOutput(sequence_id, (at,), f"{at} ", finish))
            assert told
            assert set(told) <= set(members)
            if finish:
                del stepper.running[sequence_id]
                assert [run.shared for run in told] == [False] + [True] * (len(told) - 1)
                for run in told:
                    see(run)
                    assert members.pop(run) == at + 1
        elif action == "stream" and runs:
            see(runs[number % len(runs)])
        elif action == "objective" and runs:
            books.set_objective(runs[number % len(runs)], dice.choice(list(ObjectiveKind)))
        assert len(books) == len(stepper.running)
        assert books.num_followers == len(members) - len(books)
        prompts = [sequence.segments for sequence in stepper.running.values()]
        assert len(set(prompts)) == len(prompts), "equal sequences run side by side"
    for run in list(members):
        books.leave(run)
    assert len(books) == books.num_followers == 0
    assert not stepper.running
    assert not books._by_key
