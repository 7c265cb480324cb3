"""How long outputs get: learned per function, from what completions report."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping

from parrot_mq.messages import LengthHistogram
from parrot_mq.scheduler.nodes import RequestNode

MAX_FUNCTIONS = 10_000

Lengths = dict[int, LengthHistogram]
"""Lengths of a function's outputs, each by the end of its prompt (the index of its segment)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of a function, and a partition that has it."""

    partition: int
    tenant: str
    function: str
    lengths: Lengths


class OutputLengths:
    """A histogram of output tokens per (tenant, function, output); bounded, least recently used ones go first.

    Few samples say little, and the limit ``max_tokens`` says something: the estimate is the geometric mean of what was
    seen and the limit, with as much weight on the former as there were samples, and that of one on the limit.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Lengths] = OrderedDict()
        self._changed: OrderedDict[tuple[str, str], int] = OrderedDict()

    def observe(self, node: RequestNode, num_output_tokens: int) -> None:
        """Learn from the completion of ``node``. A length that was asked for says nothing about the function."""
        if num_output_tokens <= 0 or node.exact_length:
            return
        key = (node.tenant, node.function)
        lengths = self._of(key)
        lengths[node.prompt_end] = lengths.get(node.prompt_end, LengthHistogram()).observed(num_output_tokens)
        self._changed[key] = node.partition

    def expected(self, node: RequestNode) -> int:
        """Return the expected number of output tokens, for durations: ``max_tokens`` of a function not seen yet."""
        seen = self._seen(node)
        return node.max_tokens if seen is None else _towards_limit(seen.mean, seen.count, node.max_tokens)

    def high(self, node: RequestNode) -> int:
        """Return a number of output tokens that nine in ten outputs do not exceed, for memory."""
        seen = self._seen(node)
        return node.max_tokens if seen is None else _towards_limit(seen.high, seen.count, node.max_tokens)

    def recall(self, tenant: str, function: str, lengths: Mapping[int, LengthHistogram]) -> None:
        """Take in what an earlier leader has learned; what was learned since then stays."""
        if lengths:
            known = self._of((tenant, function))
            known.update({output: histogram for output, histogram in lengths.items() if output not in known})

    def changed(self, limit: int) -> list[Learned]:
        """Return up to ``limit`` functions of which something was learned since they were returned last."""
        taken: list[Learned] = []
        while self._changed and len(taken) < limit:
            (tenant, function), partition = self._changed.popitem(last=False)
            taken.append(Learned(partition, tenant, function, dict(self._known[tenant, function])))
        return taken

    def _seen(self, node: RequestNode) -> LengthHistogram | None:
        if node.exact_length:
            return None
        lengths = self._known.get((node.tenant, node.function))
        return lengths.get(node.prompt_end) if lengths is not None else None

    def _of(self, key: tuple[str, str]) -> Lengths:
        lengths = self._known.setdefault(key, {})
        self._known.move_to_end(key)
        if len(self._known) > MAX_FUNCTIONS:
            forgotten, _ = self._known.popitem(last=False)
            self._changed.pop(forgotten, None)
        return lengths


def _towards_limit(num_tokens: float, count: int, limit: int) -> int:
    num_tokens = max(1.0, num_tokens)
    towards: float = (limit / num_tokens) ** (1 / (1 + count))
    return max(1, min(limit, round(num_tokens * towards)))
