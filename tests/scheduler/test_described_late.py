"""What is known of a function reaches its requests wherever they are when it was looked up."""

from __future__ import annotations

from parrot_mq.messages import FunctionRecord, LengthHistogram, Segment, SegmentKind
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from tests.scheduler.support import add, core_with, engine, placed

RECORD = FunctionRecord("f", (Segment(SegmentKind.CONSTANT, "word " * 400), Segment(SegmentKind.OUTPUT, "out")))
LENGTHS = {1: LengthHistogram.from_data({"count": 500, "mean": 20.0, "weights": {"17": 20.0}})}


def look_up(core: Core, node: RequestNode) -> None:
    """Do what the courier of templates does."""
    (key,) = core.templates.missing()
    core.describe(core.learn_function(key, RECORD, LENGTHS), 0.0)
    assert (key[1], key[2]) == (node.tenant, node.function)


def room_for_tokens(core: Core) -> int:
    """Return how many more requests of 64 tokens the engine's memory takes."""
    other = add(core, "probe", function="other", sampling={"max_tokens": 64})
    core.ready.discard(other)
    other.prompt_tokens, other.output_tokens, other.high_output_tokens = 0, 64, 64
    load, count = core.engines["e0"], 0
    while load.admits(other, 0.0) and count < 1000:
        count += 1
        other.id = f"0-r-probe{count}"
        load.charge(other, 0.0)
    return count


def test_a_request_that_was_dispatched_before_is_charged_for_what_it_will_take() -> None:
    core = core_with(engine("e0", slots=1000, num_blocks=256))  # 4096 tokens
    node = add(core, "a", sampling={"max_tokens": 3000})
    assert placed(core) == {"a": "e0"}
    assert node.output_tokens == 3000
    look_up(core, node)
    assert node.output_tokens in (20, 21)
    assert node.prompt_tokens == 500
    assert node.prefix
    assert core.engines["e0"].num_outstanding == 1
    assert room_for_tokens(core) == (4096 - 500 - node.reserved_tokens) // 64


def test_a_request_that_went_by_a_lane_too() -> None:
    core = core_with(engine("e0", slots=1000, num_blocks=256))
    node = add(core, "a", sampling={"max_tokens": 3000})
    core.took_lane(node, node.rev + 1, "e0", "1.x", 0.0)
    look_up(core, node)
    assert node.output_tokens in (20, 21)
    assert room_for_tokens(core) > 40


def test_a_queued_request_is_digested_once() -> None:
    core = core_with()
    node = add(core, "a", sampling={"max_tokens": 3000})
    look_up(core, node)
    assert node in core.ready
    assert node.prefix
    assert node.prompt_tokens == 500
    assert not core.templates.has_missing


def test_a_waiting_request_counts_with_its_length_on_the_critical_path() -> None:
    core = core_with()
    add(core, "a", function="other")
    node = add(core, "b", ["a"], sampling={"max_tokens": 3000})
    for key in core.templates.missing():
        core.describe(core.learn_function(key, RECORD, {2: LENGTHS[1]} if key[2] == "f" else {}), 0.0)
    assert node.output_tokens in (20, 21)
    assert not node.prefix


def test_a_request_that_ended_meanwhile_is_left_alone() -> None:
    core = core_with(engine("e0"))
    node = add(core, "a")
    placed(core)
    core.finish(node, 4)
    look_up(core, node)
    assert core.engines["e0"].num_outstanding == 0
    assert len(core.ready) == 0


def test_a_function_that_does_not_exist_is_looked_up_once_for_what_is_there() -> None:
    core = core_with()
    node = add(core, "a")
    (key,) = core.templates.missing()
    core.describe(core.learn_function(key, None, {}), 0.0)
    assert node in core.ready
    assert not core.templates.has_missing
    core.put_back(node, engine_gone=False)
    assert not core.templates.has_missing
    other = add(core, "b")  # somebody submits it after all: by then it is there
    look_up(core, other)
    assert other.prompt_tokens == 500
