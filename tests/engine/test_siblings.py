"""Members of a task group on their way into the batch."""

from __future__ import annotations

import pytest

from parrot_mq.messages import ObjectiveKind, SamplingParams
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.port import SequenceInput
from parrot_workers.engine.sequence import Sequence, SequenceStatus
from parrot_workers.engine.siblings import MAX_HELD

SHARED = 12
"""Tokens that the prompts of a group begin with: three blocks of four."""


class Bench:
    """A scheduler whose plans are carried out by counting; every prompt is ``SHARED`` tokens and some of its own."""

    def __init__(self, max_num_seqs: int = 8, budget: int = 64, num_blocks: int = 100) -> None:
        self.scheduler = BatchScheduler(
            BlockManager(num_blocks, 4), max_num_seqs=max_num_seqs, max_num_batched_tokens=budget
        )
        self.arrival = 0

    def add(self, name: str, group: str = "", size: int = 0, *, rank: float = 0.0, own: int = 3) -> Sequence:
        self.arrival += 1
        begin = [sum((group or name).encode())] * SHARED
        sequence = Sequence(
            SequenceInput(name, (), SamplingParams(), ObjectiveKind.LATENCY, rank, group=group, group_size=size),
            [*begin, *(self.arrival * 10 + n for n in range(own))], Detokenizer(lambda ids: ""),
            arrival=self.arrival, max_output_tokens=50, stop_ids=frozenset(),
        )  # fmt: skip
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[str, int]:
        """Plan and carry out a step; return the tokens of each chunk."""
        chunks = self.scheduler.plan()
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
            if chunk.samples:
                chunk.sequence.append(7)
        self.scheduler.blocks.check(self.scheduler)
        return {chunk.sequence.id: chunk.num_tokens for chunk in chunks}


def test_the_first_computes_the_shared_prefix_and_the_others_join_it_in_the_same_step() -> None:
    bench = Bench()
    for name in "abc":
        bench.add(name, "g", 3)
    assert bench.step() == {"a": SHARED + 3, "b": 3, "c": 3}
    assert len(bench.scheduler.siblings) == 0


def test_a_busy_engine_lets_the_members_wait_for_each_other() -> None:
    bench = Bench()
    bench.add("other")
    bench.step()
    bench.add("a", "g", 3)
    assert bench.step() == {"other": 1}
    bench.add("b", "g", 3)
    bench.add("c", "g", 3)
    assert bench.step() == {"other": 1, "a": SHARED + 3, "b": 3, "c": 3}


def test_a_member_that_never_comes_is_waited_for_in_vain_for_two_plans() -> None:
    bench = Bench()
    bench.add("other")
    bench.step()
    bench.add("a", "g", 3)
    bench.add("b", "g", 3)
    for _ in range(MAX_HELD - 1):
        assert bench.step() == {"other": 1}
    assert bench.step() == {"other": 1, "a": SHARED + 3, "b": 3}
    bench.add("c", "g", 3)  # late: it is not held again for those that have gone in
    steps = [bench.step() for _ in range(MAX_HELD)]
    assert [step.get("c") for step in steps] == [*[None] * (MAX_HELD - 1), 3]


def test_an_idle_engine_waits_for_nobody() -> None:
    bench = Bench()
    bench.add("a", "g", 3)
    assert bench.step() == {"a": SHARED + 3}
    bench.add("b", "g", 3)
    bench.add("c", "g", 3)
    steps = [bench.step() for _ in range(MAX_HELD)]
    assert {name for step in steps for name in step} == {"a", "b", "c"}
    assert sum(step.get("b", 0) for step in steps) < SHARED


def test_others_pass_those_that_are_held_but_nobody_stands_between_them() -> None:
    bench = Bench(max_num_seqs=3)
    bench.add("other", rank=0)
    bench.step()
    bench.add("a", "g", 2, rank=1)
    bench.add("x", rank=2)
    assert bench.step() == {"other": 1, "x": SHARED + 3}
    bench.add("y", rank=2)
    bench.add("b", "g", 2, rank=3)
    assert [sequence.id for sequence in bench.scheduler.waiting] == ["a", "b", "y"]
    assert bench.step() == {"other": 1, "x": 1, "a": SHARED + 3}
    bench.scheduler.remove(next(sequence for sequence in bench.scheduler if sequence.id == "x"))
    assert bench.step() == {"other": 1, "a": 1, "b": 3}


def test_a_member_that_is_aborted_is_missed_by_nobody() -> None:
    bench = Bench()
    bench.add("other")
    bench.step()
    members = [bench.add(name, "g", 3) for name in "ab"]
    bench.scheduler.remove(members[0])
    bench.add("c", "g", 3)
    assert bench.step() == {"other": 1, "b": SHARED + 3, "c": 3}
    bench.scheduler.remove(bench.add("d", "g", 2))
    assert len(bench.scheduler.siblings) == 0


def test_groups_of_tenants_are_their_own() -> None:
    bench = Bench()
    bench.add("other")
    bench.step()
    first = bench.add("a", "g", 2)
    source = SequenceInput("b", (), SamplingParams(), salt="another", group="g", group_size=2)
    stranger = Sequence(
        source, [*range(8)], Detokenizer(lambda ids: ""), arrival=9, max_output_tokens=5, stop_ids=frozenset()
    )
    bench.scheduler.add(stranger)
    assert bench.step() == {"other": 1}
    assert {first.status, stranger.status} == {SequenceStatus.WAITING}


@pytest.mark.parametrize("size", [0, 1])
def test_one_alone_is_no_group(size: int) -> None:
    bench = Bench()
    bench.add("other")
    bench.step()
    bench.add("a", "g", size)
    assert bench.step() == {"other": 1, "a": SHARED + 3}


def test_preempted_members_wait_for_nobody() -> None:
    bench = Bench(num_blocks=10)
    bench.add("other")
    bench.step()
    for name in "ab":
        bench.add(name, "g", 2)
    preempted = False
    for _ in range(60):
        bench.step()
        preempted |= bench.scheduler.num_preemptions > 0
        for sequence in list(bench.scheduler.running):
            if sequence.num_output_tokens >= 20:
                bench.scheduler.remove(sequence)
    assert preempted
    assert not list(bench.scheduler)
