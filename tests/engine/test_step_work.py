"""What a step computes, as a cost model counts it, and what the engine learns from it."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

from parrot_kernels import BLOCK_SIZE
from parrot_mq.messages import CostModel, SamplingParams
from parrot_workers.engine import step_stats
from parrot_workers.engine.chunk import Chunk
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.ngram_index import Draft
from parrot_workers.engine.port import SequenceInput
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.step_work import StepWork
from tests.engine.test_engine import GREEDY, MakeEngine, make_prompts

COST = CostModel(0.1, 10.0, 0.5, 0.001, 0.0001, 0.5)


def sequence(num_tokens: int, table: list[int]) -> Sequence:
    """Return one that decodes behind a prompt of ``num_tokens``."""
    made = Sequence(
        SequenceInput("s", (), SamplingParams()), [*range(num_tokens)], Detokenizer(lambda ids: ""),
        arrival=0, max_output_tokens=9, stop_ids=frozenset(),
    )  # fmt: skip
    made.token_ids.append(0)
    made.block_table = table
    return made


def decoding(table: list[int], num_tokens: int) -> Chunk:
    return Chunk(sequence(num_tokens, table), num_tokens, 1, samples=True)


def test_pieces_of_prompts_and_sequences_that_decode_are_told_apart() -> None:
    prompt = sequence(200, [*range(13)])
    recomputed = Chunk(sequence(10, [20, 21]), 10, 5, samples=False)
    chunks = [Chunk(prompt, 64, 100, samples=False), recomputed, decoding([30, 31], 20), decoding([40], 9)]
    work = StepWork.of(chunks)
    assert work == StepWork(((100, 64), (5, 10)), 2, 21 + 10, 0)
    assert work.prefill_ms(COST) == pytest.approx(COST.prefill_ms(100, 64) + COST.prefill_ms(5, 10))
    assert work.decode_ms(COST) == pytest.approx(COST.decode_step_ms(2, 31))


def test_a_step_that_decodes_nothing_has_no_decode_part() -> None:
    work = StepWork.of([Chunk(sequence(200, [*range(13)]), 0, 64, samples=False)])
    assert work.decode_ms(COST) == 0
    assert StepWork.of([]).prefill_ms(COST) == 0


@pytest.mark.parametrize("num_shared", [0, 1, 2, 5, 8])
def test_blocks_in_common_are_counted_for_each_sequence_but_the_first(num_shared: int) -> None:
    shared = [*range(num_shared)]
    tables = [shared + [100 * i + j for j in range(1, 10 - num_shared)] for i in range(1, 4)]
    work = StepWork.of([decoding(table, BLOCK_SIZE * 9 - 1) for table in tables])
    assert work.context_tokens == 3 * BLOCK_SIZE * 9
    assert work.shared_tokens == 2 * num_shared * BLOCK_SIZE


def test_groups_may_be_mixed_and_one_may_have_no_blocks_any_more() -> None:
    tables = [[1, 2, 3], [7, 8], [1, 2, 4], [], [7, 8], [1, 2, 4, 5]]
    work = StepWork.of([decoding(table, 20) for table in tables])
    assert work.shared_tokens == (2 + 2 + 3) * BLOCK_SIZE


def test_drafted_tokens_are_rows_that_read_the_context_once() -> None:
    chunk = dataclasses.replace(decoding([1, 2], 20), draft=Draft([5, 6], 2))
    assert StepWork.of([chunk]) == StepWork((), 3, 21, 0)


@pytest.mark.parametrize("run_ahead", [False, True])
def test_the_engine_says_what_its_steps_cost(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, run_ahead: bool
) -> None:
    """By a clock that goes on 10 ms in each of the five phases a step takes 50, not the 5.5 that were announced."""
    ticks = itertools.count()
    monkeypatch.setattr(step_stats, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))
    engine = make_engine("llama", run_ahead=run_ahead)
    assert engine.spec.cost.decode_step_ms(1, 0) == 5.5
    assert engine.stats().cost == engine.spec.cost
    engine.generate(make_prompts(1), SamplingParams(max_tokens=80, ignore_eos=True))
    learned = engine.stats().cost
    assert learned is not None
    assert learned.decode_step_ms(1, 0) == pytest.approx(50, rel=0.1)


def test_the_engine_counts_the_work_of_its_steps(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    works: list[StepWork] = []
    count = StepWork.of

    def watch(chunks: list[Chunk]) -> StepWork:
        works.append(count(chunks))
        return works[-1]

    monkeypatch.setattr(StepWork, "of", watch)
    engine = make_engine("llama", max_num_batched_tokens=64)
    engine.generate(make_prompts(4, shared=63, seed=2), GREEDY)
    assert len(works) == engine.stats().num_steps
    assert sum(num_tokens for work in works for num_tokens, _ in work.prefills) == engine.stats().num_prefill_tokens
    assert max(work.shared_tokens for work in works if work.num_rows == 4) == 3 * 64, "63 letters and the beginning"
