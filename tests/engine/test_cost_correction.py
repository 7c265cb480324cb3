"""The online correction of a cost model: it follows the engine's speed, and not its hiccups."""

from __future__ import annotations

import dataclasses
import random

import pytest

from parrot_mq.messages import CostModel
from parrot_workers.engine.cost_correction import MAX_FACTOR, CostCorrection

ANNOUNCED = CostModel(0.1, 10.0, 0.5, 0.001, 0.00001, 0.5)


def slower(prefill: float, decode: float) -> CostModel:
    """Return what an engine costs whose prefills and decodes take so many times as long as announced."""
    return CostModel(
        0.1 * prefill, 10.0 * decode, 0.5 * decode, 0.001 * decode, 0.00001 * prefill, ANNOUNCED.shared_saving
    )


class Engine:
    """Takes steps of random sizes at a true cost, and lets a correction see them."""

    def __init__(self, true: CostModel, *, announced: CostModel = ANNOUNCED, noise: float = 0.0) -> None:
        self.true = true
        self.announced = announced
        self.correction = CostCorrection(announced)
        self._noise = noise
        self._random = random.Random(7)

    def run(
        self, num_steps: int, *, prefill: float = 0.3, tokens: tuple[int, int] = (200, 1000), hiccups: float = 0.0
    ) -> None:
        """Take steps, this part of them with a prefill of ``tokens``, and this part of them a hundred times slower."""
        for _ in range(num_steps):
            num_seqs = self._random.randint(1, 32)
            context = num_seqs * self._random.randint(50, 500)
            piece = (self._random.randint(*tokens), 100) if self._random.random() < prefill else (0, 0)
            took_ms = self._random.gauss(1, self._noise) * self.true.step_ms([piece], num_seqs, context)
            took_ms *= 100 if self._random.random() < hiccups else 1
            self.correction.observe(
                self.announced.prefill_ms(*piece),
                self.announced.decode_step_ms(num_seqs, context),
                took_ms,
                num_prefill_tokens=piece[0],
            )


def assert_close(found: CostModel, true: CostModel, tolerance: float) -> None:
    assert found.prefill_ms(500, 100) == pytest.approx(true.prefill_ms(500, 100), rel=tolerance)
    assert found.decode_step_ms(8, 2000, 500) == pytest.approx(true.decode_step_ms(8, 2000, 500), rel=tolerance)


@pytest.mark.parametrize(
    ("prefill", "decode", "num_steps"), [(1, 1, 1), (2, 2, 100), (0.5, 0.5, 100), (2, 0.5, 200), (0.5, 2, 200)]
)
def test_a_model_that_is_wrong_by_two_becomes_right_within_a_tenth(
    prefill: float, decode: float, num_steps: int
) -> None:
    """Wrong in both parts alike it is told by every step; wrong in opposite ways, by the three in ten that prefill."""
    engine = Engine(slower(prefill, decode))
    engine.run(num_steps)
    assert_close(engine.correction.corrected, engine.true, 0.1)
    engine.run(300)
    assert_close(engine.correction.corrected, engine.true, 0.01)


def test_another_speed_is_followed_and_then_the_old_one_again() -> None:
    engine = Engine(slower(1, 1))
    engine.run(200)
    for factor in (3, 1):
        engine.true = slower(factor, factor)
        engine.run(150)
        assert_close(engine.correction.corrected, engine.true, 0.1)


def test_noise_is_averaged_and_hiccups_hardly_count() -> None:
    engine = Engine(slower(2, 2), noise=0.1)
    engine.run(300)
    assert_close(engine.correction.corrected, engine.true, 0.1)
    steady = engine.correction.corrected
    engine.correction.observe(0, ANNOUNCED.decode_step_ms(8, 2000), 100_000, num_prefill_tokens=0)
    assert_close(engine.correction.corrected, steady, 0.06)
    engine.run(300, hiccups=0.01)
    assert_close(engine.correction.corrected, engine.true, 0.2)


def test_what_is_never_done_is_not_learned() -> None:
    engine = Engine(slower(2, 2))
    engine.run(200, prefill=0)
    assert engine.correction.corrected.prefill_ms(500) == ANNOUNCED.prefill_ms(500)
    assert engine.correction.corrected.decode_base_ms == pytest.approx(20, rel=0.01)


def test_a_few_tokens_of_a_prompt_say_nothing_about_prefill() -> None:
    """One token of a prompt takes as long as reading the weights, for which the model has no term."""
    correction = CostCorrection(ANNOUNCED)
    for _ in range(100):
        correction.observe(ANNOUNCED.prefill_ms(1, 400), 0, 10, num_prefill_tokens=1)
        correction.observe(0, 0, 10, num_prefill_tokens=0)
    assert correction.corrected == ANNOUNCED


@pytest.mark.parametrize(("announced", "true"), [(0.9, 0.0), (0.1, 0.9), (0.9, 0.5), (0.5, 0.9)])
def test_another_overlap_is_learned_from_pieces_beside_what_decodes(announced: float, true: float) -> None:
    """And not taken for another speed of prefill, though it hides nearly as much as such a piece takes."""
    engine = Engine(
        dataclasses.replace(ANNOUNCED, overlap=true), announced=dataclasses.replace(ANNOUNCED, overlap=announced)
    )
    engine.run(200, prefill=0.5, tokens=(16, 120))
    assert engine.correction.corrected.overlap == pytest.approx(true, abs=0.05)
    assert_close(engine.correction.corrected, engine.true, 0.01)


@pytest.mark.parametrize(("announced", "true"), [(0.9, 0.0), (0.1, 0.9), (0.0, 0.9)])
def test_long_prefills_hardly_notice_another_overlap(announced: float, true: float) -> None:
    engine = Engine(
        dataclasses.replace(ANNOUNCED, overlap=true), announced=dataclasses.replace(ANNOUNCED, overlap=announced)
    )
    engine.run(300)
    assert_close(engine.correction.corrected, engine.true, 0.2)


def test_what_no_overlap_explains_is_the_speed() -> None:
    """Steps of small pieces alone, all of which take twice as long: a model that sees them predicts such steps."""
    engine = Engine(
        dataclasses.replace(slower(2, 2), overlap=0.5), announced=dataclasses.replace(ANNOUNCED, overlap=0.9)
    )
    engine.run(600, prefill=0.5, tokens=(16, 120))
    found = engine.correction.corrected
    for tokens in (32, 100):
        expected = pytest.approx(engine.true.step_ms([(tokens, 100)], 8, 2000), rel=0.1)
        assert found.step_ms([(tokens, 100)], 8, 2000) == expected


@pytest.mark.parametrize("took_ms", [0.0, 1e12])
def test_whatever_is_observed_the_model_stays_one(took_ms: float) -> None:
    correction = CostCorrection(ANNOUNCED)
    for _ in range(2000):
        correction.observe(100, 20, took_ms, num_prefill_tokens=500)
    found = correction.corrected
    assert 0 <= found.overlap <= 1
    for name in set(dataclasses.asdict(ANNOUNCED)) - {"overlap"}:
        value = getattr(ANNOUNCED, name)
        assert value / MAX_FACTOR * 0.999 <= getattr(found, name) <= value * MAX_FACTOR * 1.001
        assert getattr(found, name) > 0
