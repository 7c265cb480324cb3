"""Runs of the benchmark of applications at toy size, in virtual time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.apps.bench import Result, Scale
from benchmarks.apps.drivers import MAX_ROUND_TRIP_S, MIN_ROUND_TRIP_S
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.parallel import run_all
from benchmarks.apps.plan import Order
from benchmarks.apps.simulated import engines_of, run_simulated
from benchmarks.apps.systems import BASELINES, PAGES, SYSTEMS, System, ours

TOY = Scale(tokens=32, work=4, rate=8.0)
VALUES: dict[str, dict[str, Any]] = {
    "chain": {"chunk": 1024, "out": 50, "documents": [3]},
    "chain-background": {"rate": 2.0, "documents": [3]},
    "concurrent-chains": {"count": 16},
    "map-reduce": {"chunk": 1024, "out": 50, "documents": [3]},
    "copilot": {"batch": 4},
    "gpts": {"rate": 4.0, "count": 32},
    "multi-agent": {"files": 4},
    "mixed": {"chats": 5, "applications": 1},
    "retention": {"rate": 2.0, "applications": 1},
    "task-groups": {"rate": 2.0, "applications": 2},
}


def run(name: str, system: System) -> Result:
    return run_simulated(EXPERIMENTS[name], VALUES[name], system, 0, TOY)


def calls(result: Result) -> dict[Any, Any]:
    return {trace.key: (trace.function, trace.num_prompt_tokens, trace.digest) for trace in result.traces}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_a_client_asks_for_the_same_and_gets_the_same(name: str) -> None:
    own, client = calls(run(name, ours())), calls(run(name, SYSTEMS["throughput+cache"]))
    common = own.keys() & client.keys()
    assert len(common) >= 4
    assert {key: own[key] for key in common} == {key: client[key] for key in common}
    if name not in ("chain-background", "retention", "task-groups"):  # whose background goes on until they are done
        assert own.keys() == client.keys()


def test_a_client_pays_for_every_link_of_a_chain() -> None:
    own, client = run("chain", ours()), run("chain", SYSTEMS["throughput"])
    links = len(own.traces)
    paid_s = client.outcome.seconds - own.outcome.seconds
    assert paid_s >= links * MIN_ROUND_TRIP_S - MAX_ROUND_TRIP_S
    assert own.outcome.seconds >= MIN_ROUND_TRIP_S


def test_the_same_arguments_give_the_same_seconds() -> None:
    assert run("gpts", ours()) == run("gpts", ours())


def test_engines_are_what_a_system_has() -> None:
    experiment = EXPERIMENTS["map-reduce"]
    setups = {system.name: engines_of(experiment, system, Scale()) for system in (*BASELINES, PAGES)}
    assert Counter(setup.prefix_caching for setup in setups.values()) == {True: 3, False: 2}
    assert {name for name, setup in setups.items() if setup.max_running_tokens} == {"latency", "latency+cache"}
    assert setups["latency"].max_running_tokens >= experiment.shape.prompt_tokens
    assert setups["throughput+pages"].profile.cost.shared_saving == 0
    whole = engines_of(experiment, ours(), Scale())
    assert whole.profile.cost.shared_saving > 0
    assert not engines_of(experiment, ours("prefix_caching"), Scale()).prefix_caching


def test_the_reference_s_baseline_runs_on_its_own_engine() -> None:
    experiment = EXPERIMENTS["multi-agent"]
    bounded, free = (engines_of(experiment, SYSTEMS[name], Scale()) for name in ("reference", "reference-throughput"))
    assert (bounded.max_running_tokens, free.max_running_tokens) == (7096, 0)
    for setup in (bounded, free):
        assert setup.profile.name == "a100-13b-vllm"
        assert setup.profile.cost.shared_saving == setup.profile.cost.overlap == 0
        assert not setup.prefix_caching
    with pytest.raises(KeyError):
        engines_of(EXPERIMENTS["gpts"], SYSTEMS["reference"], Scale())
    for other in EXPERIMENTS.values():
        assert ("reference" in other.baselines) is bool(other.reference_tokens)


def test_several_processes_give_the_same_results() -> None:
    experiment = EXPERIMENTS["chain"]
    (point,) = (point for point in experiment.points if point.label == "out=25")
    chosen = [Order(experiment, point, system, 0) for system in (ours(), SYSTEMS["throughput"])]
    jobs = [(order, point.values | {"documents": [3]}) for order in chosen]
    alone, together = ([(order, result) for order, result, _ in run_all(jobs, number)] for number in (1, 2))
    assert alone == together
    assert [order for order, _ in together] == chosen


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_feature_may_be_off_without_changing_a_token(name: str) -> None:
    whole = calls(run(name, ours()))
    for feature in EXPERIMENTS[name].features:
        without = calls(run(name, ours(feature)))
        common = whole.keys() & without.keys()
        assert {key: whole[key] for key in common} == {key: without[key] for key in common}, feature


def test_a_latency_centric_engine_holds_back_what_is_too_much_at_once() -> None:
    values = {"chunk": 1024, "out": 50, "documents": [4]}
    bounded, free = (
        run_simulated(EXPERIMENTS["map-reduce"], values, SYSTEMS[name], 0) for name in ("latency", "throughput")
    )
    assert bounded.outcome.seconds > free.outcome.seconds
