"""The fleet's indices say what a scan over all engines would."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from parrot_mq.messages import LATENCY, THROUGHPUT, CostModel, EngineState, Objective, ObjectiveKind, RequestState
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.scheduler.policy import EngineLoad, Fleet
from parrot_mq.scheduler.policy.fleet import MAX_DRIFT, Standing
from parrot_mq.scheduler.policy.outlook import SIZES
from parrot_mq.scheduler.policy.residency import MAX_RECENT, RECENT_MS
from tests.scheduler.support import engine, spec_of

ENGINES = [f"e{n}" for n in range(5)]
COSTS = (CostModel(0.1, 5.0, 0.5), CostModel(0.2, 20.0, 0.1, 0.01, shared_saving=1.0), CostModel(1.0, 2.0, 3.0))
DIGESTS = ["p", "q", "r"]
OBJECTIVES = [None, LATENCY, THROUGHPUT, Objective(ObjectiveKind.TPOT, value_ms=30), Objective(ObjectiveKind.TPOT, 60)]


def request(
    name: str,
    prompt: int = 100,
    output: int = 50,
    objective: Objective | None = None,
    prefix: str = "",
    model: str = "",
) -> RequestNode:
    node = Graph().add(spec_of(name, model=model), Arrival("acme", "", 0), 1, RequestState.READY)
    assert node is not None
    node.prompt_tokens, node.output_tokens, node.objective = prompt, output, objective
    node.prefix = tuple((prefix[: n + 1], (n + 1) * prompt // (len(prefix) + 1)) for n in range(len(prefix)))
    return node


class FleetMachine(RuleBasedStateMachine):
    """Engines come, change, run things, refuse and go, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.now_ms = 0.0
        self.count = 0
        self.running: dict[str, str] = {}
        self.assigned: dict[tuple[str, str], float] = {}
        self.reported: dict[str, frozenset[str]] = {}

    @rule(
        engine_id=st.sampled_from(ENGINES),
        model=st.sampled_from(["A", "B"]),
        cost=st.sampled_from(COSTS),
        slots=st.integers(1, 4),
        blocks=st.sampled_from([0, 20, 100]),
        state=st.sampled_from([EngineState.READY, EngineState.READY, EngineState.DRAINING]),
        resident=st.sets(st.sampled_from(DIGESTS)),
    )
    def beat(
        self,
        engine_id: str,
        model: str,
        cost: CostModel,
        slots: int,
        blocks: int,
        state: EngineState,
        resident: set[str],
    ) -> None:
        record = engine(engine_id, model=model, slots=slots, cost=cost, num_blocks=blocks, resident=tuple(resident))
        self.fleet.load_of(engine_id).update(dataclasses.replace(record, state=state))
        self.reported[engine_id] = frozenset(resident)

    @precondition(lambda self: bool(self.fleet))
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        engine_id = data.draw(st.sampled_from(sorted(self.fleet)))
        if data.draw(st.booleans()):
            self.fleet[engine_id].update(None)
            return
        assert self.fleet.pop(engine_id) is not None
        self.reported.pop(engine_id, None)
        self.running = {i: e for i, e in self.running.items() if e != engine_id}
        self.assigned = {key: at for key, at in self.assigned.items() if key[0] != engine_id}

    @precondition(lambda self: bool(self.fleet))
    @rule(data=st.data())
    def suspend(self, data: st.DataObject) -> None:
        self.fleet[data.draw(st.sampled_from(sorted(self.fleet)))].suspended = True

    @precondition(lambda self: bool(self.fleet))
    @rule(
        data=st.data(),
        prompt=st.integers(0, 400),
        output=st.integers(1, 200),
        objective=st.sampled_from(OBJECTIVES),
        prefix=st.sampled_from(["", "p", "pq", "pqr", "q"]),
    )
    def charge(self, data: st.DataObject, prompt: int, output: int, objective: Objective | None, prefix: str) -> None:
        load = self.fleet[data.draw(st.sampled_from(sorted(self.fleet)))]
        self.count += 1
        node = request(str(self.count), prompt, output, objective, prefix)
        load.charge(node, self.now_ms)
        self.running[node.id] = load.id
        for digest, _ in node.prefix:
            self.assigned[load.id, digest] = self.now_ms

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data(), objective=st.sampled_from(OBJECTIVES))
    def restate(self, data: st.DataObject, objective: Objective | None) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        node = request(request_id.removeprefix("0-r-"), objective=objective)
        self.fleet[self.running[request_id]].restate(node)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data())
    def discharge(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.fleet[self.running.pop(request_id)].discharge(request_id)

    @rule(ms=st.sampled_from([0.5, 20.0, 1000.0, RECENT_MS]))
    def wait(self, ms: float) -> None:
        self.now_ms += ms

    def open(self) -> dict[str, EngineLoad]:
        return {load.id: load for load in self.fleet.values() if load.room > 0}

    @invariant()
    def open_models_are_those_of_engines_with_room(self) -> None:
        loads = self.open().values()
        assert self.fleet.open_models(self.now_ms) == ({load.model for load in loads} | {""} if loads else set())
        for kept in self.open():
            others = {load.model for load in loads if load.id != kept}
            assert self.fleet.open_models(self.now_ms, [kept]) == (others | {""} if others else set())

    @invariant()
    def ranks_are_those_of_a_scan(self) -> None:
        self.fleet.open_models(self.now_ms)  # whatever changed is ranked anew
        for model in ("A", "B", ""):
            loads = {i: load for i, load in self.open().items() if not model or load.model == model}
            pool = self.fleet._pool(model, self.now_ms)
            ranked: dict[str, Standing] = {}
            for standing in Standing:
                for size, ranking in enumerate(pool.scores[standing]):
                    for score, name, room in ranking.best(-math.inf, len(ENGINES)):
                        assert ranked.setdefault(name, standing) is standing
                        assert room == loads[name].headroom
                        exact = loads[name].outlook.scores_ms(self.now_ms)[size]
                        backlog = max(0.0, loads[name].outlook.prefill_until_ms - self.now_ms)
                        # Between two rankings only the backlog of prompts shrinks.
                        late = exact * MAX_DRIFT / (1 - MAX_DRIFT) if not backlog else math.inf
                        assert exact - 1e-6 <= score <= exact + late + 1e-6
            assert ranked.keys() == loads.keys()
            for name, load in loads.items():
                paced = load.paced_until_ms(self.now_ms) > self.now_ms
                assert ranked[name] is (
                    Standing.PACED if paced else Standing.PROMISED if load.bound_ms else Standing.FREE
                )
            roomiest = self.fleet.roomiest(model, self.now_ms)
            most = max((load.headroom for load in loads.values()), default=None)
            assert (roomiest.headroom if roomiest is not None else None) == most

    @invariant()
    def company_is_kept_by_the_engines_that_take_requests(self) -> None:
        self.fleet.open_models(self.now_ms)
        ready: dict[str, list[EngineLoad]] = {}
        for load in self.fleet.values():
            if load.record is not None and load.record.state is EngineState.READY:
                ready.setdefault(load.model, []).append(load)
        sides = self.fleet.company._sides
        assert sides.keys() == ready.keys()
        for model, side in sides.items():
            assert side.busy.keys() == {load.id for load in ready[model]}
            assert side.urgent.keys() == {load.id for load in ready[model] if load.num_urgent}
            assert side.demand == pytest.approx(sum(side.busy.values()))
            assert not any(side.busy[name] for name in side.urgent)

    @invariant()
    def prefixes_are_held_where_they_were_reported_or_assigned(self) -> None:
        for load in self.fleet.values():
            for digest in ("p", "pq", "pqr", "q", "r"):
                node = request("probe", 10)
                node.prefix = ((digest, 7),)
                at_ms = self.assigned.get((load.id, digest), -math.inf)
                held = digest in self.reported.get(load.id, ()) or at_ms + RECENT_MS > self.now_ms
                assert load.cached_tokens(node, self.now_ms) == (7 if held else 0)
                if held:
                    (some,) = self.fleet._holders.some_of(node.prefix, 0, len(ENGINES))
                    assert load.id in some

    @invariant()
    def what_does_not_fit_the_roomiest_fits_nowhere(self) -> None:
        for prompt, output in ((0, 1), (100, 50), (400, 400)):
            node = request("probe", prompt, output)
            roomiest = self.fleet.roomiest("", self.now_ms)
            if roomiest is None or roomiest.headroom < prompt + output:
                assert not any(load.admits(node, self.now_ms) for load in self.fleet.values())

    @invariant()
    def scores_are_predictions_for_usual_requests(self) -> None:
        for load in self.open().values():
            alike = [load.completion_ms(request("probe", *size), self.now_ms) for size in SIZES]
            assert load.outlook.scores_ms(self.now_ms) == pytest.approx(alike)

    @invariant()
    def a_prediction_is_the_same_by_either_way(self) -> None:
        node = request("probe", 300, 40, LATENCY, "pq")
        for load in self.open().values():
            predicted = load.predict(node, self.now_ms)
            assert (predicted is not None) == load.admits(node, self.now_ms)
            if predicted is not None:
                assert predicted == pytest.approx(load.completion_ms(node, self.now_ms))


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_candidates_are_the_best_and_those_that_attract() -> None:
    fleet = Fleet()
    for n in range(200):
        fleet.load_of(f"e{n:03}").update(engine(f"e{n:03}", slots=8, cost=CostModel(0.1, 5.0 + n, 0.5)))
    node = request("x", prefix="pq", prompt=3000)
    fleet["e150"].charge(request("holder", prefix="pq", prompt=3000), 0.0)
    node.planned_engine = "e199"
    assert {load.id for load in fleet.candidates(node, 1.0)} == {"e000", "e001", "e150", "e199"}
    assert {load.id for load in fleet.candidates(node, 1.0, ["e000", "e150"])} == {"e001", "e002", "e199"}


def test_what_was_assigned_long_ago_is_forgotten() -> None:
    fleet = Fleet()
    load = fleet.load_of("e0")
    load.update(engine("e0"))
    for n in range(3 * MAX_RECENT):
        node = request(str(n))
        node.prefix = ((f"d{n}", 100),)
        load.charge(node, 0.0)
        load.discharge(node.id)
    assert len(fleet._holders) == MAX_RECENT
    fleet.pop("e0")
    assert len(fleet._holders) == 0


def test_without_affinity_nothing_is_cached() -> None:
    fleet = Fleet(affinity=False)
    for name in ("e0", "e1"):
        fleet.load_of(name).update(engine(name, resident=("p",)))
    node = request("x", prefix="p")
    fleet["e1"].charge(request("y", prefix="p"), 0.0)
    assert all(load.cached_tokens(node, 0.0) == 0 for load in fleet.values())


@pytest.mark.parametrize("count", [1, 2])
def test_a_prefix_that_is_estimated_longer_than_its_prompt_is_all_of_it(count: int) -> None:
    load = EngineLoad("e0")
    load.update(engine("e0", cost=CostModel(0.1, 20.0, 0.5, overlap=0.9)))
    load.charge(request("chat", objective=LATENCY, prefix="p"), 0.0)
    exact, longer = request("exact", 100), request("longer", 100)
    exact.prefix, longer.prefix = (("p", 100),), (("p", 103),)
    assert load.completion_ms(longer, 0.0, count=count) == load.completion_ms(exact, 0.0, count=count)
