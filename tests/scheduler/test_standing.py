"""Why requests sit where they do, as the scheduler sees it."""

from __future__ import annotations

import dataclasses
import random

from parrot_mq.messages import LATENCY, TPOT, EngineState, Objective, ObjectiveKind, Placed, Refusal, RequestState
from parrot_mq.messages.standing import MAX_CONSIDERED, MAX_ENGINES, Standing
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import Arrival
from parrot_mq.scheduler.policy import refusal
from parrot_mq.scheduler.standing import placed, standing
from tests.scheduler.support import add, core_with, engine, spec_of
from tests.scheduler.support import placed as decided


def of(core: Core, name: str) -> Standing:
    """Return where request ``0-r-<name>`` stands, as it comes out of the answer's text."""
    said = standing(core, f"0-r-{name}", 0.0)
    assert said is not None
    return Standing.from_json(said.to_json())


def refusals(core: Core, name: str) -> dict[str, Refusal | None]:
    return {answer.id: answer.refusal for answer in of(core, name).engines}


def test_each_engine_says_why_it_does_not_take_a_request() -> None:
    core = core_with(
        engine("full", slots=1),
        engine("draining"),
        engine("starting"),
        engine("small", slots=64, num_blocks=4),
        engine("other", model="other"),
        engine("away"),
    )
    for name in ("draining", "starting"):
        record = core.engines[name].record
        assert record is not None
        core.engines[name].update(dataclasses.replace(record, state=EngineState(name)))
    for n in range(20):  # as many as they take
        node = add(core, f"busy{n}", model="stub", sampling={"max_tokens": 40, "ignore_eos": True})
        for name in ("full", "small"):
            if core.engines[name].admits(node, 0.0):
                core.ready.discard(node)
                core.engines[name].charge(node, 0.0)
                break
        else:
            core.ready.discard(node)
    core.engines["away"].suspended = True
    add(core, "a", model="stub", sampling={"max_tokens": 40})
    assert refusals(core, "a") == {
        "full": Refusal.FULL,
        "small": Refusal.MEMORY,
        "draining": Refusal.DRAINING,
        "starting": Refusal.STARTING,
        "away": Refusal.SUSPENDED,
    }
    assert decided(core) == {}
    assert of(core, "a").num_engines == 5
    core.engines["away"].update(None)
    assert "away" not in refusals(core, "a")
    core.engines["full"].discharge(core.engines["full"].outstanding[0])
    while core.engines["full"].num_outstanding:
        core.engines["full"].discharge(core.engines["full"].outstanding[0])
    first = of(core, "a").engines[0]
    assert (first.id, first.refusal) == ("full", None)
    assert first.predicted_ms > 0
    assert decided(core) == {"a": "full"}


def test_a_promised_time_per_token_is_a_reason() -> None:
    core = core_with(engine("e0", slots=64))
    a = add(core, "a", sampling={"max_tokens": 40})
    core.want("0-v-a", Objective(ObjectiveKind.TPOT, value_ms=5))
    assert decided(core) == {"a": "e0"}
    add(core, "b")
    assert refusals(core, "b") == {"e0": Refusal.BOUND}
    core.finish(a, 5)
    assert refusals(core, "b") == {"e0": None}


def test_what_refuses_is_what_does_not_admit() -> None:
    dice = random.Random(2)
    seen = set()
    for _ in range(300):
        slots, blocks = dice.choice([1, 2, 8]), dice.choice([0, 4, 64])
        core = core_with(engine("e0", slots=slots, num_blocks=blocks))
        load = core.engines["e0"]
        for n in range(dice.randrange(6)):
            node = add(core, f"n{n}", sampling={"max_tokens": dice.choice([1, 30, 400])})
            if dice.random() < 0.3:
                core.want(f"0-v-n{n}", Objective(ObjectiveKind.TPOT, value_ms=dice.choice([6, 7, 50])))
            core.ready.discard(node)
            load.charge(node, 0.0)
        load.suspended = dice.random() < 0.1
        node = add(core, "a", sampling={"max_tokens": dice.choice([1, 30, 400])})
        why = refusal(load, node, 0.0)
        seen.add(why)
        assert (why is None) == load.admits(node, 0.0)
    assert seen == {None, Refusal.FULL, Refusal.MEMORY, Refusal.BOUND, Refusal.SUSPENDED, Refusal.PACED}


def test_the_place_in_the_order() -> None:
    core = core_with()
    for n in range(4):
        add(core, f"early{n}", at_ms=1000)
    add(core, "other", tenant="beta", at_ms=1000)
    add(core, "elsewhere", model="other", at_ms=1000)
    add(core, "a", model="stub", at_ms=2000)
    add(core, "late", at_ms=3000)
    said = of(core, "a")
    assert (said.num_before, said.num_others, said.engines, said.held) == (4, 1, (), False)
    assert (said.state, said.output_tokens) == (RequestState.READY, core.graph.requests["0-r-a"].output_tokens)


def test_a_request_of_an_incomplete_submit_is_held() -> None:
    core = core_with(engine("e0"))
    core.holds.begin("batch", 0.0)
    add(core, "a")
    assert of(core, "a").held
    for node in core.holds.end("batch"):
        core.enqueue(node)
    assert not of(core, "a").held


def test_what_it_is_for_and_what_that_was_deduced_from() -> None:
    core = core_with(engine("e0", slots=1))
    for n in range(3):
        add(core, f"m{n}")
    add(core, "merge", ["m0", "m1", "m2"])
    add(core, "end", ["merge"])
    assert of(core, "m0").aim.objective == ""
    core.want("0-v-end", LATENCY)
    aim = of(core, "m1").aim
    assert (aim.objective, aim.objective_of) == ("latency", "0-v-end")
    assert (aim.group, aim.group_size) == ("0-r-merge", 3)
    assert of(core, "end").aim.objective_of == "0-v-end"


def test_an_objective_reaches_a_producer_that_is_submitted_later() -> None:
    core = core_with()
    core.add(spec_of("b", ["a"]), Arrival("acme", "batch", 1000), 1, RequestState.WAITING, 0.0)
    core.add(spec_of("c", ["b"]), Arrival("acme", "batch", 1000), 1, RequestState.WAITING, 0.0)
    core.want("0-v-c", TPOT)
    node = core.add(spec_of("a"), Arrival("acme", "batch", 1000), 1, RequestState.READY, 0.0)
    assert node is not None
    assert (of(core, "a").aim.objective, of(core, "a").aim.objective_of) == ("latency", "0-v-c")


def test_asking_changes_nothing() -> None:
    def run(asks: bool) -> list[dict[str, str]]:
        core, dice, plans = core_with(engine("e0", slots=2), engine("e1", slots=3)), random.Random(7), []
        for n in range(60):
            add(core, f"n{n}", tenant=dice.choice(["a", "b", "c"]), at_ms=1000 + dice.randrange(5000))
            if asks:
                for request in [*core.graph.requests, "0-r-nobody"]:
                    standing(core, request, float(n))
            if n % 3 == 0:
                plans.append(decided(core, float(n)))
            for load in list(core.engines.values()):
                for request in load.outstanding[: n % 2]:
                    core.finish(core.graph.requests[request], 3)
        return plans

    assert run(asks=True) == run(asks=False)


def test_nobody_knows_a_finished_request() -> None:
    core = core_with()
    core.finish(add(core, "a"))
    assert standing(core, "0-r-a", 0.0) is None


def test_an_answer_names_the_engines_that_matter() -> None:
    core = core_with(*(engine(f"e{n:02}", slots=1) for n in range(MAX_ENGINES + 9)))
    taken = [add(core, f"n{n}") for n in range(2 * MAX_ENGINES + 10)]  # each takes one, and one ahead
    for node in taken:
        node.output_tokens = 4000
    core.decide(0.0)
    add(core, "a")
    said = of(core, "a")
    assert said.num_engines == MAX_ENGINES + 9
    assert len(said.engines) == MAX_ENGINES
    assert [answer.refusal for answer in said.engines[:9]] == [None] * 8 + [Refusal.FULL]


def test_a_placement_is_kept_in_few_words() -> None:
    core = core_with(*(engine(f"e{n}") for n in range(9)))
    add(core, "a")
    core.want("0-v-a", LATENCY)
    (one,) = core.decide(0.0).placements
    many = tuple((f"e{n}", 100.0 - n) for n in range(1, 9))
    kept = placed(dataclasses.replace(one, predicted_ms=12.34, considered=many))
    assert Placed.from_json(kept.to_json()) == dataclasses.replace(kept, predicted_ms=12.3)
    assert kept.considered == (("e8", 92.0), ("e7", 93.0), ("e6", 94.0), ("e5", 95.0))
    assert len(kept.considered) == MAX_CONSIDERED
    assert (kept.reason, kept.aim.objective, kept.aim.objective_of) == ("completion", "latency", "0-v-a")
    assert len(kept.to_json()) < 200


def test_defaults_are_left_out() -> None:
    assert Placed("lane").to_json() == '{"reason":"lane"}'
    assert Placed.from_json('{"reason":"lane"}') == Placed("lane")
