"""The plan of each step, without a model: budgets, order, admission, preemption."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.chunk import UNKNOWN_ID, Chunk
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.port import FinishReason, SequenceInput
from parrot_workers.engine.sequence import Sequence, SequenceStatus
from parrot_workers.engine.speculator import Speculator
from tests.engine.test_speculation import CHEAP_ROWS, DEAR_ROWS

THROUGHPUT, LATENCY = ObjectiveKind.THROUGHPUT, ObjectiveKind.LATENCY
BLOCK_SIZE = 4


class Bench:
    """A scheduler whose plans are carried out by counting."""

    def __init__(
        self, num_blocks: int = 100, max_num_seqs: int = 4, budget: int = 16, cost: CostModel | None = None
    ) -> None:
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE)
        self.scheduler = BatchScheduler(
            self.blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, cost=cost
        )
        self.arrival = 0
        self.finished: list[str] = []
        self.preempted: set[str] = set()
        self.slots: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        """(block, offset) -> the salt and the whole prefix whose key was computed there."""

    def add(
        self, length: int, max_tokens: int = 3, objective: ObjectiveKind = LATENCY, salt: str = "", rank: float = 0.0
    ) -> Sequence:
        self.arrival += 1
        sequence = Sequence(
            SequenceInput(f"s{self.arrival}", (), SamplingParams(max_tokens=max_tokens), objective, rank, salt),
            [*range(length)], Detokenizer(lambda ids: ""),
            arrival=self.arrival, max_output_tokens=max_tokens, stop_ids=frozenset(),
        )  # fmt: skip
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[str, int, int]]:
        """Plan and carry out a step; return (id, start, number of tokens) of its chunks."""
        chunks = self.scheduler.plan()
        assert sum(chunk.num_tokens for chunk in chunks) <= self.scheduler.max_num_batched_tokens
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks) <= self.scheduler.max_num_seqs
        self.preempted |= {s.id for s in self.scheduler if s.status is SequenceStatus.PREEMPTED}
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.status is SequenceStatus.RUNNING
            assert chunk.start == sequence.num_computed_tokens
            assert chunk.num_tokens >= 1
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                slot = sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
                self.slots[slot] = (sequence.source.salt, tuple(sequence.token_ids[: position + 1]))
            sequence.num_computed_tokens += chunk.num_tokens
            assert sequence.num_computed_tokens <= len(sequence.block_table) * BLOCK_SIZE
            assert chunk.samples == (sequence.num_computed_tokens == sequence.num_tokens)
            if chunk.samples:
                sequence.append(7)
                if sequence.finish is not None:
                    self.scheduler.remove(sequence)
                    self.finished.append(sequence.id)
        self.blocks.check(self.scheduler)
        self.check_cache()
        return [(chunk.sequence.id, chunk.start, chunk.num_tokens) for chunk in chunks]

    def check_cache(self) -> None:
        """Whatever the prefix cache offers was computed; asked for by followers that are a token longer."""
        for sequence in self.scheduler:
            follower = Sequence(
                sequence.source, [*sequence.token_ids, 0], Detokenizer(lambda ids: ""),
                arrival=0, max_output_tokens=1, stop_ids=frozenset(),
            )  # fmt: skip
            for index, block in enumerate(self.blocks.match(follower)):
                for offset in range(BLOCK_SIZE):
                    prefix = tuple(sequence.token_ids[: index * BLOCK_SIZE + offset + 1])
                    assert self.slots[block, offset] == (sequence.source.salt, prefix)


def test_decode_goes_before_prefill_in_one_budget() -> None:
    bench = Bench(budget=10)
    bench.add(6, salt="a")
    assert bench.step() == [("s1", 0, 6)]
    bench.add(14, salt="b")
    assert bench.step() == [("s1", 6, 1), ("s2", 0, 9)]
    assert bench.step() == [("s1", 7, 1), ("s2", 9, 5)]


def test_a_running_prompt_goes_before_a_waiting_one() -> None:
    bench = Bench(budget=10)
    bench.add(14, objective=THROUGHPUT, salt="a")
    bench.step()
    bench.add(8, salt="b")
    assert bench.step() == [("s1", 10, 4), ("s2", 0, 6)]


def test_the_order_is_objective_then_age() -> None:
    bench = Bench(max_num_seqs=1)
    for objective in (THROUGHPUT, LATENCY, ObjectiveKind.DEADLINE, LATENCY, ObjectiveKind.TPOT):
        bench.add(2, 1, objective)
    for _ in range(5):
        bench.step()
    assert bench.finished == ["s3", "s2", "s4", "s5", "s1"]


def test_nobody_overtakes_one_that_does_not_fit() -> None:
    bench = Bench(num_blocks=6, budget=40)
    bench.add(12, 8)
    bench.add(16, 1, salt="x")
    bench.add(2, 1)
    bench.step()
    assert [s.id for s in bench.scheduler.running] == ["s1"]
    assert [s.id for s in bench.scheduler.waiting] == ["s2", "s3"]


def test_the_youngest_throughput_sequence_gives_way() -> None:
    bench = Bench(num_blocks=8, budget=40)
    bench.add(8, 20, THROUGHPUT, "a")
    bench.add(8, 20, LATENCY, "b")
    while bench.scheduler.num_preemptions == 0:
        bench.step()
    assert bench.preempted == {"s1"}
    while "s2" not in bench.finished:
        bench.step()
    assert bench.preempted == {"s1"}


def test_else_the_youngest_gives_way() -> None:
    bench = Bench(num_blocks=8, budget=40)
    bench.add(8, 20, LATENCY, "a")
    bench.add(8, 20, LATENCY, "b")
    while len(bench.finished) < 2:
        bench.step()
    assert bench.preempted == {"s2"}
    assert bench.finished == ["s1", "s2"]


def test_a_preempted_sequence_finds_its_own_prefix() -> None:
    bench = Bench(num_blocks=9, budget=40)
    bench.add(8, 16, LATENCY, "a")
    second = bench.add(8, 16, LATENCY, "b")
    while second.status is not SequenceStatus.PREEMPTED:
        bench.step()
    while second.status is SequenceStatus.PREEMPTED:
        chunks = bench.step()
    assert {name: start for name, start, _ in chunks}["s2"] > 0
    assert second.num_cached_tokens == 0


def test_a_plan_that_preempts_publishes_nothing_it_does_not_compute() -> None:
    bench = Bench(num_blocks=10, budget=40)
    # The younger one is planned first, for its rank, and would fill a block; then the older one takes its blocks.
    bench.add(16, 20, LATENCY, "a", rank=1.0)
    younger = bench.add(15, 20, LATENCY, "b", rank=0.0)
    while younger.status is not SequenceStatus.PREEMPTED:
        bench.step()
    assert bench.preempted == {"s2"}
    while len(bench.finished) < 2:
        bench.step()


def test_restart_forgets_everything() -> None:
    bench = Bench()
    first = bench.add(9)
    bench.step()
    bench.scheduler.restart()
    assert (first.status, first.num_computed_tokens, first.block_table) == (SequenceStatus.PREEMPTED, 0, [])
    assert bench.step() == [("s1", 0, 10)]


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 6), st.integers(1, 20), st.integers(1, 12), st.sampled_from([THROUGHPUT, LATENCY]),
            st.sampled_from("ab"), st.integers(0, 2),
        ),
        min_size=1, max_size=12,
    ),
    num_blocks=st.integers(8, 20),
    budget=st.integers(3, 20),
)  # fmt: skip
def test_everything_ends_whatever_arrives(
    requests: list[tuple[int, int, int, ObjectiveKind, str, int]], num_blocks: int, budget: int
) -> None:
    bench = Bench(num_blocks, max_num_seqs=3, budget=budget)
    for pause, length, max_tokens, objective, salt, rank in requests:
        for _ in range(pause):
            bench.step()
        bench.add(length, max_tokens, objective, salt, rank)
    for _ in range(2000):
        if not [*bench.scheduler]:
            break
        assert bench.step()
    assert len(bench.finished) == len(requests)
    assert bench.blocks.num_free_blocks == num_blocks


def behind(bench: Bench, chunks: list[Chunk]) -> list[tuple[str, int, int | None]]:
    """What the step behind that of ``chunks`` would compute: (id, start, the row that samples it)."""
    return [(chunk.sequence.id, chunk.start, chunk.sampled_row) for chunk in bench.scheduler.plan_behind(chunks)]


def test_the_step_behind_goes_on_with_all_but_those_that_end() -> None:
    bench = Bench()
    for length, max_tokens in [(3, 3), (4, 1), (5, 2)]:
        bench.add(length, max_tokens, salt=str(length))
    chunks = bench.scheduler.plan()
    following = bench.scheduler.plan_behind(chunks)
    assert [(chunk.sequence.id, chunk.start, chunk.sampled_row) for chunk in following] == [("s1", 3, 0), ("s3", 5, 2)]
    assert [(chunk.num_tokens, chunk.samples, chunk.token_ids) for chunk in following] == [(1, True, [UNKNOWN_ID])] * 2
    # s3 has a block for its unknown token, which nobody can find yet.
    third = bench.scheduler.running[2]
    assert (len(third.block_table), third.num_published_blocks) == (2, 1)
    for chunk in chunks:
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        chunk.sequence.append(7)
    bench.scheduler.remove(bench.scheduler.running[1])
    bench.scheduler.publish(following)
    assert behind(bench, following) == [("s1", 4, 0)]
    bench.blocks.check(bench.scheduler)


def test_a_block_is_published_when_its_unknown_token_is_known() -> None:
    bench = Bench()
    sequence = bench.add(3, 5)
    chunks = bench.scheduler.plan()
    following = bench.scheduler.plan_behind(chunks)
    assert sequence.num_published_blocks == 0
    sequence.num_computed_tokens = 3
    sequence.append(7)
    bench.scheduler.publish(following)
    assert sequence.num_published_blocks == 1
    follower = bench.add(3, 1)
    follower.token_ids += [7, 7]
    assert bench.blocks.match(follower) == sequence.block_table[:1]


def test_nothing_is_published_for_who_has_ended() -> None:
    bench = Bench()
    sequence = bench.add(3, 5)
    following = bench.scheduler.plan_behind(bench.scheduler.plan())
    sequence.append(7)
    sequence.finish = FinishReason.ABORTED
    bench.scheduler.remove(sequence)
    bench.scheduler.publish(following)
    assert bench.blocks.num_cached_blocks == 0
    assert behind(bench, following) == []
    bench.blocks.check(bench.scheduler)


def test_no_step_behind_one_amid_a_prompt() -> None:
    bench = Bench(budget=8)
    bench.add(4, 5, salt="a")
    bench.add(8, 5, salt="b")
    assert behind(bench, bench.scheduler.plan()) == []


def test_no_step_behind_where_somebody_could_be_admitted() -> None:
    bench = Bench(max_num_seqs=2)
    bench.add(4, 5, salt="a")
    chunks = bench.scheduler.plan()
    bench.add(4, 5, salt="b")
    assert behind(bench, chunks) == []


def test_who_cannot_be_admitted_anyway_holds_up_nothing() -> None:
    full, ending, tight = Bench(max_num_seqs=1), Bench(max_num_seqs=1), Bench(num_blocks=6)
    full.add(4, 5, salt="a")
    full.add(4, 5, salt="b")
    assert behind(full, full.scheduler.plan()) == [("s1", 4, 0)]
    tight.add(11, 5, salt="a")
    tight.add(16, 1, salt="b")
    assert behind(tight, tight.scheduler.plan()) == [("s1", 11, 0)]
    assert [sequence.id for sequence in tight.scheduler.waiting] == ["s2"]
    # A seat that becomes free is another matter.
    ending.add(4, 1, salt="a")
    ending.add(4, 5, salt="b")
    assert behind(ending, ending.scheduler.plan()) == []


@pytest.mark.parametrize(
    ("overlap", "num_running", "num_ahead"), [(1.0, 0, 40), (1.0, 1, 20), (1.0, 3, 20), (0.0, 1, 2), (0.0, 3, 2)]
)
def test_beside_others_a_prompt_is_computed_ahead_as_far_as_that_is_nearly_free(
    overlap: float, num_running: int, num_ahead: int
) -> None:
    """While 20 ms of weights are read, 18 tokens are computed; an eighth of a step is two or three tokens more."""
    bench = Bench(budget=100, cost=CostModel(1.1, 20.0, 0.1, overlap=overlap))
    for _ in range(num_running):
        bench.add(4, 9)
    bench.step()
    hint = bench.add(40, 1, salt="b")
    bench.scheduler.waiting.remove(hint)
    bench.scheduler.ahead.add(hint)
    chunks = bench.scheduler.plan()
    assert [chunk.num_tokens for chunk in chunks] == [1] * num_running + [num_ahead]


def test_no_step_behind_where_a_prompt_could_be_computed_ahead() -> None:
    bench = Bench()
    bench.add(4, 5, salt="a")
    chunks = bench.scheduler.plan()
    hint = bench.add(8, 5, salt="b")
    bench.scheduler.waiting.remove(hint)
    bench.scheduler.ahead.add(hint)
    assert len(bench.scheduler.ahead) == 1
    assert behind(bench, chunks) == []


def test_no_step_behind_without_a_block_for_each() -> None:
    bench = Bench(num_blocks=5, budget=40)
    bench.add(7, 5, salt="a")
    bench.add(7, 5, salt="b")
    chunks = bench.scheduler.plan()
    assert behind(bench, chunks) == [("s1", 7, 0), ("s2", 7, 1)]
    for chunk in chunks:
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        chunk.sequence.append(7)
    assert behind(bench, bench.scheduler.plan()) == []
    assert bench.scheduler.num_preemptions == 0


@pytest.mark.parametrize(
    ("sampling", "num_generated"),
    [
        ({"repetition_penalty": 1.1}, 9), ({"presence_penalty": 0.5}, 9), ({"frequency_penalty": 0.5}, 9),
        ({"logit_bias": {1: 1.0}}, 9), ({"min_tokens": 2}, 1), ({"min_tokens": 2}, 2),
    ],
)  # fmt: skip
def test_no_step_behind_tokens_that_the_next_logits_depend_on(sampling: dict[str, Any], num_generated: int) -> None:
    bench = Bench()
    bench.add(4, 50, salt="a")
    sequence = bench.add(4, 50, salt="b")
    sequence.sampling = SamplingParams(max_tokens=50, **sampling)
    sequence.token_ids += [7] * num_generated
    assert bool(behind(bench, bench.scheduler.plan())) == (sampling == {"min_tokens": 2} and num_generated == 2)


def test_no_step_behind_where_a_draft_is_worth_its_row() -> None:
    for cost, runs_ahead in [(CHEAP_ROWS, False), (DEAR_ROWS, True)]:
        bench = Bench()
        bench.scheduler.speculator = Speculator(cost)
        sequence = bench.add(3, 50)
        sequence.token_ids += [0, 1, 2]
        chunks = bench.scheduler.plan()
        assert chunks[0].draft is None, "none is looked up for a prompt"
        assert bool(behind(bench, chunks)) == runs_ahead
    bench.scheduler.speculator = None
    assert behind(bench, chunks) == [("s1", 6, 0)]


IN_PIECES = [[("s2", 0, 20)], [("s2", 20, 10), ("s3", 0, 10)], [("s3", 10, 10)]]
AT_ONCE = [[("s2", 0, 30), ("s3", 0, 20)]]


@pytest.mark.parametrize(
    ("overlap", "beside", "expected"),
    [(0.9, LATENCY, IN_PIECES), (0.9, THROUGHPUT, AT_ONCE), (0.0, LATENCY, AT_ONCE)],
)
def test_throughput_prompts_come_in_pieces_that_a_step_hides_beside_what_somebody_waits_for(
    overlap: float, beside: ObjectiveKind, expected: list[list[tuple[str, int, int]]]
) -> None:
    """20 tokens take as long as reading the weights. Prompts of other objectives are not held up."""
    bench = Bench(budget=100, cost=CostModel(1.0, 20.0, 0.1, overlap=overlap))
    bench.add(4, 20, beside, salt="a")
    bench.step()
    bench.add(30, 20, THROUGHPUT, salt="b")
    bench.add(20, 20, THROUGHPUT, salt="c")
    bench.add(30, 20, LATENCY, salt="d")
    prompts = [[chunk for chunk in bench.step() if chunk[2] > 1] for _ in expected]
    assert prompts[0].pop(0) == ("s4", 0, 30)
    assert prompts == expected
