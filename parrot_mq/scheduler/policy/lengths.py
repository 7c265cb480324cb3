"""How long outputs get: learned per function, from what completions report."""

from __future__ import annotations

from collections import OrderedDict

from parrot_mq.scheduler.nodes import RequestNode

DECAY = 0.1
"""Weight of the newest output in the mean."""
MARGIN = 1.25
"""Outputs vary: the estimate stays above the mean by this factor."""
MAX_FUNCTIONS = 10_000


class OutputLengths:
    """A decayed mean of output tokens per (tenant, function, output); bounded, least recently used ones go first."""

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str, int], float] = OrderedDict()

    def observe(self, node: RequestNode, num_output_tokens: int) -> None:
        """Learn from the completion of ``node``."""
        if num_output_tokens <= 0:
            return
        key = (node.tenant, node.function, node.prompt_end)
        mean = self._means.get(key)
        self._means[key] = num_output_tokens if mean is None else mean + DECAY * (num_output_tokens - mean)
        self._means.move_to_end(key)
        if len(self._means) > MAX_FUNCTIONS:
            self._means.popitem(last=False)

    def expected(self, node: RequestNode) -> int:
        """Return the expected number of output tokens: ``max_tokens`` for a function not seen yet."""
        if not node.exact_length:
            mean = self._means.get((node.tenant, node.function, node.prompt_end))
            if mean is not None:
                return max(1, min(node.max_tokens, round(mean * MARGIN)))
        return node.max_tokens
