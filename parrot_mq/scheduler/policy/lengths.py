"""How long outputs get: learned per function, from what completions report."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping

from parrot_mq.scheduler.nodes import RequestNode

DECAY = 0.1
"""Weight of the newest output in the mean."""
MARGIN = 1.25
"""Outputs vary: the estimate stays above the mean by this factor."""
MAX_FUNCTIONS = 10_000

Means = dict[int, float]
"""Mean output tokens of a function's outputs, each by the end of its prompt (the index of its segment)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of a function, and a partition that has it."""

    partition: int
    tenant: str
    function: str
    means: Means


class OutputLengths:
    """A decayed mean of output tokens per (tenant, function, output); bounded, least recently used ones go first."""

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str], Means] = OrderedDict()
        self._changed: OrderedDict[tuple[str, str], int] = OrderedDict()

    def observe(self, node: RequestNode, num_output_tokens: int) -> None:
        """Learn from the completion of ``node``."""
        if num_output_tokens <= 0:
            return
        key = (node.tenant, node.function)
        means = self._of(key)
        mean = means.get(node.prompt_end)
        means[node.prompt_end] = num_output_tokens if mean is None else mean + DECAY * (num_output_tokens - mean)
        self._changed[key] = node.partition

    def expected(self, node: RequestNode) -> int:
        """Return the expected number of output tokens: ``max_tokens`` for a function not seen yet."""
        if not node.exact_length:
            mean = self._means.get((node.tenant, node.function), {}).get(node.prompt_end)
            if mean is not None:
                return max(1, min(node.max_tokens, round(mean * MARGIN)))
        return node.max_tokens

    def recall(self, tenant: str, function: str, means: Mapping[int, float]) -> None:
        """Take in what an earlier leader has learned; what was learned since then stays."""
        if means:
            known = self._of((tenant, function))
            known.update({output: mean for output, mean in means.items() if output not in known})

    def changed(self, limit: int) -> list[Learned]:
        """Return up to ``limit`` functions of which something was learned since they were returned last."""
        taken: list[Learned] = []
        while self._changed and len(taken) < limit:
            (tenant, function), partition = self._changed.popitem(last=False)
            taken.append(Learned(partition, tenant, function, dict(self._means[tenant, function])))
        return taken

    def _of(self, key: tuple[str, str]) -> Means:
        means = self._means.setdefault(key, {})
        self._means.move_to_end(key)
        if len(self._means) > MAX_FUNCTIONS:
            forgotten, _ = self._means.popitem(last=False)
            self._changed.pop(forgotten, None)
        return means
