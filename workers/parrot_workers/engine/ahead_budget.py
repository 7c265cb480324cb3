"""How much of a prompt that nobody waits for yet is computed in a step beside others."""

from __future__ import annotations

from parrot_mq.messages import CostModel

SLOWDOWN = 0.125
"""Part of a step by which prompts computed ahead may make it longer: those who wait for it should hardly notice."""


def tokens_ahead(cost: CostModel, limit: int, num_computed: int, num_beside: int, *, step_ms: float) -> int:
    """Return how many tokens of a prompt, behind ``num_computed`` of it, a step computes besides what it does.

    Without them it takes ``step_ms`` and prefills ``num_beside`` tokens, which are hidden first. They are as many as
    make it longer by ``SLOWDOWN`` at most, but at least one, and at most ``limit``. Where reading the weights hides
    computing (``CostModel.overlap``) these are about the tokens that it hides, ``decode_base_ms /
    prefill_per_token_ms``: what is computed then is nearly free, and need not be computed when somebody waits for it.
    Found by bisection: more tokens never take less time.
    """
    hidden_ms = cost.hidden_ms(num_beside)
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        longer_ms = cost.prefill_ms(middle, num_computed) - (cost.hidden_ms(num_beside + middle) - hidden_ms)
        if longer_ms <= SLOWDOWN * step_ms:
            low = middle
        else:
            high = middle - 1
    return min(low, limit)
