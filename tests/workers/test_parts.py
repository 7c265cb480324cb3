"""The small parts of the worker shell: plans, the backlog, vitals, leases, the template cache, the step thread."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import pytest

from parrot_mq.messages import CostModel, EngineState, FunctionRecord, ObjectiveKind, Segment, SegmentKind
from parrot_mq.store.records import Assignment
from parrot_workers.engine.port import EngineSpec, EngineStats
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker.backlog import Backlog, Waiting
from parrot_workers.worker.plan import Plan, control_objective
from parrot_workers.worker.prompt import FunctionCache
from parrot_workers.worker.run import Leases
from parrot_workers.worker.stepper import Event, Failed, Loaded, StepThread
from parrot_workers.worker.vitals import MAX_RESIDENT, Vitals


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("{}", Plan()),
        ("not json", Plan()),
        ("[]", Plan()),
        ('{"rank": "x", "prefix": 3, "objective": "nonsense"}', Plan()),
        ('{"rank": 2, "objective": "ttft"}', Plan(2.0, ObjectiveKind.TTFT)),
        ('{"objective": {"kind": "deadline", "at_ms": 5}}', Plan(objective=ObjectiveKind.DEADLINE)),
        ('{"prefix": ["a", "b"], "group": "g"}', Plan(prefix=("a", "b"), group="g")),
        ('{"group": "g", "group_size": 4}', Plan(group="g", group_size=4)),
        ('{"group": "g", "group_size": "four"}', Plan(group="g")),
    ],
)
def test_plans(text: str, plan: Plan) -> None:
    assert Plan.from_json(text) == plan


def test_objectives_of_control_messages() -> None:
    assert control_objective("throughput") is ObjectiveKind.THROUGHPUT
    assert control_objective('{"kind": "tpot"}') is ObjectiveKind.TPOT


def waiting(request: str, rank: float) -> Waiting:
    store: Any = None
    return Waiting(store, Assignment("1-0", request, "1.a", "{}"), Plan(rank), 0.0)


def test_the_backlog_is_ordered_by_rank_then_by_arrival() -> None:
    backlog = Backlog()
    for request, rank in (("c", 2), ("a", 1), ("b", 1), ("gone", 0), ("a", 0)):
        backlog.push(waiting(request, rank))
    backlog.discard("gone/1.a")
    assert "a/1.a" in backlog
    assert len(backlog) == 3
    assert backlog.pop(0) == []
    assert [one.assignment.request for one in backlog.pop(2)] == ["a", "b"]
    assert [one.assignment.request for one in backlog.clear()] == ["c"]
    assert len(backlog) == 0


def test_an_assignment_may_come_back_after_it_was_discarded() -> None:
    backlog = Backlog()
    backlog.push(waiting("a", 1))
    backlog.discard("a/1.a")
    backlog.push(waiting("a", 1))
    assert len(backlog.pop(5)) == 1


def test_leases_are_kept_by_partition() -> None:
    leases = Leases()
    leases.hold(0, ("r1", "1.a"))
    leases.hold(1, ("r2", "1.b"))
    leases.drop(("r3", "unknown"))
    assert leases.of(0) == [("r1", "1.a")]
    leases.drop(("r1", "1.a"))
    assert leases.of(0) == []


def test_vitals_show_the_newest_prefixes_first_and_bound_them() -> None:
    vitals = Vitals("e-1", "sim", "m")
    assert vitals.describe().state is EngineState.STARTING
    vitals.loaded(EngineSpec("internal", "sim", 4, 100, 16, 7))
    vitals.note_prefix(map(str, range(MAX_RESIDENT + 5)))
    vitals.note_prefix(["7"])
    record = vitals.describe()
    assert record.resident[:2] == ("7", str(MAX_RESIDENT + 4))
    assert len(record.resident) == MAX_RESIDENT
    assert (record.state, record.model, record.num_free_blocks) == (EngineState.READY, "m", 7)
    vitals.rename("e-2")
    assert (vitals.engine_id, vitals.describe().resident) == ("e-2", ())


def test_vitals_measure_tokens_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    vitals = Vitals("e-1", "sim", "m")
    tokens = [0]
    vitals.watch(lambda: EngineStats(1, 2, 10, 5, num_generated_tokens=tokens[0]), lambda: 3)
    for _ in range(20):
        now[0] += 1
        tokens[0] += 50
        record = vitals.describe()
    assert record.tokens_per_s == pytest.approx(50, abs=0.1)
    assert (record.num_running, record.num_waiting, record.num_free_blocks) == (1, 5, 5)


def test_vitals_say_what_the_newest_steps_cost() -> None:
    announced, learned = CostModel(decode_base_ms=10), CostModel(decode_base_ms=20)
    vitals = Vitals("e-1", "sim", "m")
    vitals.loaded(EngineSpec("m", "sim", 4, 128, 16, 8, cost=announced))
    stats = EngineStats(1, 2, 8, 5)
    vitals.watch(lambda: stats, lambda: 0)
    assert vitals.describe().cost == announced
    stats = dataclasses.replace(stats, cost=learned)
    assert vitals.describe().cost == learned


async def test_the_function_cache_forgets_the_oldest() -> None:
    asked: list[str] = []

    class Stub:
        async def function(self, tenant: str, digest: str) -> FunctionRecord | None:
            asked.append(digest)
            return None if digest == "unknown" else FunctionRecord(digest, (Segment(SegmentKind.OUTPUT, "x"),))

    store: Any = Stub()
    cache = FunctionCache(capacity=2)
    assert await cache.get(store, "t", "unknown") is None
    for digest in ("a", "b", "a", "c", "a", "b"):
        found = await cache.get(store, "t", digest)
        assert found is not None
        assert found.name == digest
    assert asked == ["unknown", "a", "b", "c", "b"]
    assert cache.peek("other", "a") is None


def collect(make: Any) -> tuple[StepThread, list[Event], threading.Event]:
    events: list[Event] = []
    told = threading.Event()

    def deliver(event: Event) -> None:
        events.append(event)
        told.set()

    thread = StepThread(make, deliver)
    thread.start()
    return thread, events, told


def test_a_step_thread_tells_of_an_engine_that_cannot_be_made() -> None:
    def make() -> SimEngine:
        raise ValueError("no")

    thread, events, told = collect(make)
    assert told.wait(10)
    assert thread.close(10)
    (event,) = events
    assert isinstance(event, Failed)
    assert str(event.error) == "no"


def test_a_step_thread_closes_its_engine() -> None:
    closed = threading.Event()

    class Watched(SimEngine):
        def close(self) -> None:
            super().close()
            closed.set()

    thread, events, told = collect(lambda: Watched(clock=InstantClock()))
    assert told.wait(10)
    assert isinstance(events[0], Loaded)
    assert thread.close(10)
    assert closed.is_set()


def test_a_step_thread_that_was_never_started_is_closed() -> None:
    assert StepThread(SimEngine, lambda event: None).close(0.1)


def test_objectives_reach_engines_that_want_them() -> None:
    told: list[tuple[str, ObjectiveKind]] = []
    done = threading.Event()

    class Ordering(SimEngine):
        def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
            told.append((sequence_id, objective))
            done.set()

    thread, _, _ = collect(lambda: Ordering(clock=InstantClock()))
    thread.set_objective("s", ObjectiveKind.LATENCY)
    assert done.wait(10)
    assert thread.close(10)
    assert told == [("s", ObjectiveKind.LATENCY)]
