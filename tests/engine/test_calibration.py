"""Calibration: a runner whose times follow a known cost model, and the model that is found."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE
from parrot_mq.messages import CostModel
from parrot_workers.engine.calibration import REPEATS, calibrate
from parrot_workers.engine.step_batch import Span
from parrot_workers.engine.step_work import StepWork

GPU = CostModel(0.03, 5.0, 0.02, 0.00005, 0.000001, 0.9, overlap=0.95)
CPU = CostModel(2.0, 40.0, 3.0, 0.004, 0.0005, 0.5, overlap=0.75)


class FakeRunner:
    """Takes the time that a cost model says, by a clock of its own; ``noise`` makes steps longer, never shorter."""

    def __init__(self, true: CostModel, *, num_blocks: int = 4096, noise: float = 0.0) -> None:
        self.true = true
        self.cache = SimpleNamespace(num_blocks=num_blocks)
        self.now_s = 0.0
        self.num_runs = 0
        self.largest = 0
        self._noise = noise
        self._random = random.Random(3)

    def clock(self) -> float:
        return self.now_s

    def run(self, spans: Sequence[Span]) -> Tensor:
        tables = [list(span.block_table) for span in spans]
        for span, table in zip(spans, tables, strict=True):
            assert len(table) * BLOCK_SIZE >= span.start + len(span.token_ids)
            assert all(0 <= block < self.cache.num_blocks for block in table)
        written = [table[span.start // BLOCK_SIZE] for span, table in zip(spans, tables, strict=True)]
        assert len(set(written)) == len(spans), "two sequences write to one block"
        prefills = [(len(span.token_ids), span.start) for span in spans if len(span.token_ids) > 1]
        decodes = [span for span in spans if len(span.token_ids) == 1]
        shared = sum(BLOCK_SIZE * len(set(table) & set(tables[0])) for table in tables[1:])
        work = StepWork(tuple(prefills), len(decodes), sum(span.start + 1 for span in decodes), shared)
        took_ms = work.prefill_ms(self.true) + work.decode_ms(self.true)
        took_ms -= self.true.hidden_ms(work.num_prefill_tokens) if prefills and decodes else 0
        self.now_s += took_ms / 1000 * (1 + self._noise * self._random.expovariate(1))
        self.num_runs += 1
        self.largest = max(self.largest, sum(len(span.token_ids) for span in spans))
        return torch.zeros(len(spans), 4)


def found_by(runner: FakeRunner, **sizes: Any) -> CostModel:
    limits = {"max_num_seqs": 64, "max_num_tokens": 2048, "max_model_len": 4096} | sizes
    anything: Any = runner
    return calibrate(anything, clock=runner.clock, **limits)


def assert_alike(found: CostModel, true: CostModel, tolerance: float) -> None:
    for num_tokens, cached in ((100, 0), (500, 0), (500, 1500)):
        assert found.prefill_ms(num_tokens, cached) == pytest.approx(true.prefill_ms(num_tokens, cached), rel=tolerance)
    for num_seqs, context in ((1, 50), (1, 2000), (8, 8 * 500), (16, 16 * 2000)):
        for shared in (0, (num_seqs - 1) * 400):
            expected = pytest.approx(true.decode_step_ms(num_seqs, context, shared), rel=tolerance)
            assert found.decode_step_ms(num_seqs, context, shared) == expected
            for num_tokens in (20, 100, 500):
                expected = pytest.approx(true.step_ms([(num_tokens, 0)], num_seqs, context, shared), rel=tolerance)
                assert found.step_ms([(num_tokens, 0)], num_seqs, context, shared) == expected


@pytest.mark.parametrize(
    "true",
    [
        GPU, CPU, CostModel(0.1, 7.0, 0.0, 0.001, 0.0, 0.0), CostModel(1.0, 0.0, 5.0),
        CostModel(0.1, 7.0, 0.0, 0.001, overlap=1.0),
    ],
)  # fmt: skip
def test_the_model_that_times_follow_is_found(true: CostModel) -> None:
    assert_alike(found_by(FakeRunner(true)), true, 1e-6)


@pytest.mark.parametrize("true", [GPU, CPU])
def test_noise_is_tolerated(true: CostModel) -> None:
    assert_alike(found_by(FakeRunner(true, noise=0.05)), true, 0.1)


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_num_seqs": 1}, {"max_num_tokens": 1, "max_num_seqs": 1}, {"max_num_tokens": 2, "max_num_seqs": 2},
        {"max_model_len": 1}, {"max_model_len": 2}, {"max_model_len": 17}, {"max_model_len": 300},
    ],
)  # fmt: skip
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 64])
def test_the_smallest_engines_are_calibrated_too(sizes: dict[str, int], num_blocks: int) -> None:
    runner = FakeRunner(CPU, num_blocks=num_blocks)
    found = found_by(runner, **sizes)
    assert runner.largest <= sizes.get("max_num_tokens", 2048)
    assert found.decode_step_ms(1, BLOCK_SIZE) == pytest.approx(CPU.decode_step_ms(1, BLOCK_SIZE), rel=0.01)
    assert 0 <= found.shared_saving <= 1
    assert 0 <= found.overlap <= 1


def test_a_clock_that_stands_still_gives_a_model_all_the_same() -> None:
    found = found_by(FakeRunner(CostModel(0, 0, 0, 0)))
    assert 0 <= max(dataclasses.astuple(found)) < 1e-6


def test_a_slow_engine_is_not_timed_for_long() -> None:
    """Seconds a step: each is run twice, and the long prompt not at all."""
    slow = CostModel(20.0, 1000.0, 10.0, 0.001, 0.0, 0.0, 0.8)
    runner = FakeRunner(slow)
    assert_alike(found_by(runner), slow, 1e-6)
    assert runner.largest == 128
    assert runner.num_runs <= 2 * 9
    quick = FakeRunner(GPU)
    found_by(quick)
    assert quick.num_runs == 9 * (REPEATS + 1)
    assert quick.now_s < 1
