"""How much is computed ahead beside others: what is nearly free, and never more than an eighth of a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.messages import CostModel
from parrot_workers.engine.ahead_budget import SLOWDOWN, tokens_ahead

COST = CostModel(0.1, 20.0, 0.5, prefill_per_pair_ms=0.00001, overlap=1.0)
STEP_MS = 22.5


def test_what_the_weights_read_hides_is_computed() -> None:
    """200 tokens are computed while the weights are read; 28 more are an eighth of a step."""
    assert tokens_ahead(COST, 2048, 0, 0, step_ms=STEP_MS) == pytest.approx(200 + 28, abs=4)
    assert tokens_ahead(COST, 100, 0, 0, step_ms=STEP_MS) == 100, "the step's budget"
    assert tokens_ahead(COST, 2048, 5000, 0, step_ms=STEP_MS) < 200, "attention to what is computed is not hidden"


def test_prompts_that_somebody_waits_for_are_hidden_first() -> None:
    assert tokens_ahead(COST, 2048, 0, 150, step_ms=STEP_MS) == pytest.approx(50 + 28, abs=4)
    assert tokens_ahead(COST, 2048, 0, 1000, step_ms=STEP_MS) == pytest.approx(28, abs=4)


def test_where_nothing_hides_it_is_little_but_something() -> None:
    plain = CostModel(0.1, 20.0, 0.5)
    assert tokens_ahead(plain, 2048, 0, 0, step_ms=STEP_MS) == 28
    assert tokens_ahead(CostModel(50.0, 20.0, 0.5), 2048, 0, 0, step_ms=STEP_MS) == 1
    assert tokens_ahead(plain, 0, 0, 0, step_ms=STEP_MS) == 0
    assert tokens_ahead(CostModel(0.0, 0.0, 0.0), 2048, 0, 0, step_ms=0) == 2048


@given(
    st.builds(CostModel, *[st.floats(0, limit) for limit in (1, 50, 2, 0.01, 0.001, 1, 1)]),
    st.integers(1, 4096),
    st.integers(0, 4000),
    st.integers(0, 400),
)
def test_nobody_waits_much_longer_for_it(cost: CostModel, limit: int, num_computed: int, num_beside: int) -> None:
    beside = [(num_beside, 0)]
    step_ms = cost.step_ms(beside, 4, 2000)
    found = tokens_ahead(cost, limit, num_computed, num_beside, step_ms=step_ms)
    assert 1 <= found <= limit

    def longer_ms(num_tokens: int) -> float:
        return cost.step_ms([*beside, (num_tokens, num_computed)], 4, 2000) - step_ms

    slack = 1e-6 * (1 + step_ms)
    assert found == 1 or longer_ms(found) <= SLOWDOWN * step_ms + slack
    assert found == limit or longer_ms(found + 1) >= SLOWDOWN * step_ms - slack
