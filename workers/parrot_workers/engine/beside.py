"""How much of the prompts of throughput work a step computes beside requests that somebody waits for."""

from __future__ import annotations

import math

from parrot_mq.messages import CostModel, ObjectiveKind


class Beside:
    """One step's allowance: tokens that its throughput prompts may have; infinite where nobody urgent decodes.

    A piece of a prompt as long as one reading of the weights hides costs those that decode hardly anything, a longer
    one costs them all that is beyond (``CostModel.hidden_ms``; stall-free batching, Agrawal et al., OSDI'24). So beside
    them throughput prompts come in such pieces, one a step, which they hardly notice. The prompts take nearly as long
    as in large pieces where reading the weights is most of a step; in a large batch longer, by what a step lasts
    besides.
    An engine where nothing is hidden (``overlap`` 0) gains nothing by it: there prompts are as they are elsewhere.
    """

    __slots__ = ("_left",)

    def __init__(self, cost: CostModel, *, urgent: bool) -> None:
        """``urgent``: whether a sequence decodes whose objective is another than THROUGHPUT."""
        self._left = math.inf
        if urgent and cost.overlap and cost.prefill_per_token_ms:
            self._left = max(1, int(cost.decode_base_ms / cost.prefill_per_token_ms))

    def admits(self, objective: ObjectiveKind) -> bool:
        """Whether a prompt with this objective may have any tokens yet."""
        return self._left > 0 or objective is not ObjectiveKind.THROUGHPUT

    def take(self, objective: ObjectiveKind, num_tokens: int) -> int:
        """Return how many of ``num_tokens`` such a prompt may have, and count them."""
        if objective is not ObjectiveKind.THROUGHPUT:
            return num_tokens
        taken = int(min(num_tokens, self._left))
        self._left -= taken
        return taken
