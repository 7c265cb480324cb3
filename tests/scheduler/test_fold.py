from __future__ import annotations

import itertools
import random

import orjson
import pytest

from parrot_mq.messages import LATENCY, THROUGHPUT, RequestState
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.fold import fold
from parrot_mq.store.scheduler import IntakeEntry
from tests.scheduler.support import core_with, engine, placed, spec_of

_ids = itertools.count(1)


def entry(kind: str, **fields: str) -> IntakeEntry:
    return IntakeEntry(f"{1000 + next(_ids)}-0", kind, fields)


def submitted(*requests: tuple[str, tuple[str, ...], str], last: str = "1", **fields: str) -> IntakeEntry:
    """Make the hint of a submit of (name, inputs, state) requests."""
    return entry(
        "submitted",
        **{
            "session": "0-s-1", "tenant": "acme", "batch": "b", "last": last, "inputs": "", "objectives": "",
            "specs": orjson.dumps([spec_of(name, inputs) for name, inputs, _ in requests]).decode(),
            "states": " ".join(f"0-r-{name}:1:{state}" for name, _, state in requests),
            **fields,
        },
    )  # fmt: skip


def done(name: str, *, rev: int = 4, ready: str = "", num_output_tokens: int = 0) -> IntakeEntry:
    return entry(
        "resolved", variables=f"0-v-{name}:d{name}:7", done=f"0-r-{name}:{rev}:{num_output_tokens}", ready=ready
    )


def apply(core: Core, *entries: IntakeEntry) -> None:
    for one in entries:
        fold(core, one, 0.0)


def names(core: Core) -> list[str]:
    return [node.id.removeprefix("0-r-") for node in core.ready]


def test_what_is_submitted_ready_is_queued_and_the_rest_waits() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), ("b", ("a",), "waiting")))
    assert names(core) == ["a"]
    assert core.graph.requests["0-r-b"].depth == 1


def test_a_completion_frees_the_request_and_queues_its_consumers() -> None:
    core = core_with(engine("e0"))
    apply(core, submitted(("a", (), "ready"), ("b", ("a",), "waiting")))
    assert placed(core) == {"a": "e0"}
    apply(core, done("a", ready="0-r-b:2"))
    assert names(core) == ["b"]
    assert "0-r-a" not in core.graph.requests
    assert core.graph.variables["0-v-a"].digest == "da"
    assert core.engines["e0"].num_outstanding == 0


def test_memory_is_freed_when_everything_is_finished() -> None:
    core = core_with()
    order = [f"n{i}" for i in range(200)]
    rng = random.Random(7)
    requests = [
        (name, tuple(rng.sample(order[:i], min(i, rng.randrange(4)))), "ready" if i == 0 else "waiting")
        for i, name in enumerate(order)
    ]
    apply(core, submitted(*requests))
    for name in order:
        apply(core, done(name))
    assert core.graph.requests == {}
    assert core.graph.variables == {}
    assert len(core.ready) == 0


def test_the_same_entry_twice_changes_nothing() -> None:
    core = core_with(engine("e0"))
    entries = [submitted(("a", (), "ready"), ("b", ("a",), "waiting")), done("a", ready="0-r-b:2")]
    apply(core, entries[0], entries[0])
    placed(core)
    apply(core, entries[1])
    assert placed(core) == {"b": "e0"}
    apply(core, *entries[1:], done("a", ready="0-r-b:2"))
    assert names(core) == []
    assert core.graph.requests["0-r-b"].state is RequestState.QUEUED


def test_news_older_than_what_is_known_is_ignored() -> None:
    core = core_with(engine("e0"))
    apply(core, submitted(("a", (), "ready")))
    node = core.graph.requests["0-r-a"]
    apply(core, entry("ready", ready="0-r-a:7", dead=""))
    placed(core)
    apply(core, entry("ready", ready="0-r-a:6", dead=""), entry("released", request="0-r-a", rev="5", state="waiting"))
    assert (node.state, node.engine, node.rev) == (RequestState.QUEUED, "e0", 7)


def test_a_request_that_is_given_back_is_queued_again_and_its_engine_relieved() -> None:
    core = core_with(engine("e0"))
    apply(core, submitted(("a", (), "ready")))
    placed(core)
    apply(core, entry("ready", ready="0-r-a:3", dead=""))
    assert names(core) == ["a"]
    assert core.engines["e0"].num_outstanding == 0


def test_a_request_in_its_back_off_waits() -> None:
    core = core_with(engine("e0"))
    apply(core, submitted(("a", (), "ready")))
    placed(core)
    apply(core, entry("released", request="0-r-a", rev="4", state="waiting"))
    assert core.graph.requests["0-r-a"].state is RequestState.WAITING
    assert core.engines["e0"].num_outstanding == 0
    apply(core, entry("ready", ready="0-r-a:5", dead=""))
    assert names(core) == ["a"]


@pytest.mark.parametrize(
    "end",
    [
        entry("discarded", requests="0-r-a 0-r-b"),
        entry("ready", ready="", dead="0-r-a:2 0-r-b:2"),
        entry("resolved", variables="0-v-a:da:7 0-v-b:db:7", done="0-r-a:4:1 0-r-b:4:1", ready=""),
    ],
    ids=["discarded", "failed", "done"],
)
def test_whatever_ends_requests_takes_them_out(end: IntakeEntry) -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), ("b", ("a",), "waiting")), end, end)
    assert core.graph.requests == {}
    assert core.graph.variables == {}
    assert names(core) == []


def test_a_batch_is_held_until_its_last_chunk() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), last=""))
    assert names(core) == []
    apply(core, submitted(("b", (), "ready"), last=""), submitted(("c", ("a",), "waiting")))
    assert names(core) == ["a", "b"]


def test_a_batch_is_not_held_for_ever() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), last=""))
    assert core.holds.wait_s(0.01) == pytest.approx(0.04)
    assert core.holds.due(0.049) == []
    for node in core.holds.due(0.05):
        core.enqueue(node)
    assert names(core) == ["a"]
    assert core.holds.wait_s(1.0) is None


def test_what_ends_while_it_is_held_is_not_queued() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), last=""), entry("discarded", requests="0-r-a"), submitted())
    assert names(core) == []


def test_an_objective_stated_before_the_producer_came_is_taken_over() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), objectives='0-v-a {"kind":"throughput"}'))
    assert core.graph.requests["0-r-a"].objective == THROUGHPUT


def test_an_objective_reorders_what_waits() -> None:
    core = core_with(engine("e0", slots=1))
    apply(core, submitted(("a", (), "ready"), ("b", (), "ready"), ("c", (), "ready")))
    apply(
        core,
        entry("objectives", objectives=f"0-v-a {THROUGHPUT.to_json()}\n0-v-c {LATENCY.to_json()}"),
    )
    core.decide(0.0)
    assert core.graph.requests["0-r-c"].engine == "e0"


def test_engines_are_told_only_what_they_do_not_take_for_granted() -> None:
    core = core_with(engine("e0"))
    apply(core, submitted(("a", (), "ready"), ("b", (), "ready")))
    placed(core)
    core.want("0-v-a", LATENCY)
    assert not core.upgraded
    core.want("0-v-b", THROUGHPUT)
    assert [node.id for node in core.upgraded] == ["0-r-b"]
    core.want("0-v-b", LATENCY)
    assert [node.id for node in core.upgraded] == ["0-r-b", "0-r-b"]


def test_output_lengths_are_learned_from_completions() -> None:
    core = core_with()
    apply(core, submitted(("a", (), "ready"), ("b", (), "ready")))
    apply(core, done("a", num_output_tokens=16))
    # One output says little: the geometric mean of its 16 tokens and of the 128 that are allowed.
    assert core.lengths.expected(core.graph.requests["0-r-b"]) == 45


def test_resolved_inputs_come_with_the_submit() -> None:
    core = core_with()
    apply(core, submitted(("b", ("x",), "ready"), inputs="0-v-x:abc:12"))
    (variable,) = core.graph.requests["0-r-b"].inputs
    assert (variable.resolved, variable.digest, variable.size_bytes) == (True, "abc", 12)


def test_kinds_from_the_future_are_passed_over() -> None:
    core = core_with()
    apply(core, entry("novelty", request="0-r-a"))
    assert core.graph.requests == {}


def test_news_of_requests_that_are_not_known_is_passed_over() -> None:
    core = core_with()
    apply(
        core,
        entry("ready", ready="0-r-x:3", dead="0-r-y:3"),
        entry("released", request="0-r-x", rev="5", state="waiting"),
        done("x"),
        entry("discarded", requests="0-r-x"),
    )
    assert core.graph.requests == {}
    assert core.graph.variables == {}
