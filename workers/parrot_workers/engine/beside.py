"""How much of the prompts of throughput work a step computes beside requests that somebody waits for."""

from __future__ import annotations

import math

from parrot_mq.messages import CostModel, ObjectiveKind


class Beside:
    """One step's allowance: tokens that its throughput prompts may have; infinite where nobody else decodes.

    A piece of a prompt as long as one reading of the weights hides costs those that decode hardly anything, a longer
    one costs them all that is beyond (``CostModel.hidden_ms``; stall-free batching, Agrawal et al., OSDI'24). So beside
    them throughput prompts come in such pieces, one a step: nearly as fast as in large ones, and nearly unnoticed. An
    engine where nothing is hidden (``overlap`` 0) gains nothing by it: there prompts are as they are elsewhere.
    """

    __slots__ = ("_left",)

    def __init__(self, cost: CostModel, *, urgent: bool) -> None:
        """``urgent``: whether a sequence decodes whose objective is another than THROUGHPUT."""
        self._left = math.inf
        if urgent and cost.overlap and cost.prefill_per_token_ms:
            self._left = max(1, int(cost.decode_base_ms / cost.prefill_per_token_ms))

    def limit(self, objective: ObjectiveKind, budget: int) -> int:
        """Return how many of ``budget`` tokens a prompt with this objective may have."""
        return int(min(budget, self._left)) if objective is ObjectiveKind.THROUGHPUT else budget

    def took(self, objective: ObjectiveKind, num_tokens: int) -> None:
        """So many tokens of such a prompt are computed in this step."""
        if objective is ObjectiveKind.THROUGHPUT:
            self._left -= num_tokens
