"""What a step computes, as a cost model counts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from parrot_kernels import BLOCK_SIZE
from parrot_mq.messages import CostModel
from parrot_workers.engine.chunk import Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class StepWork:
    """``prefills`` are (tokens, tokens before them) of each piece of a prompt; the rest is what decodes.

    A drafted token is a row of its own, and reads the context with the row before it. ``shared_tokens`` of the context
    lie in blocks that a sequence has in common with another one.
    """

    prefills: tuple[tuple[int, int], ...]
    num_rows: int
    context_tokens: int
    shared_tokens: int

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> StepWork:
        """Return the work of ``chunks``, whose sequences have their blocks still."""
        prefills = []
        num_rows = context = shared = 0
        tables: dict[int, Sequence[int]] = {}
        for chunk in chunks:
            if chunk.is_prefill:
                prefills.append((chunk.num_tokens, chunk.start))
                continue
            num_rows += chunk.num_rows
            context += chunk.start + chunk.num_tokens
            table = chunk.sequence.block_table
            if table:
                shared += _num_common(tables.get(table[0], ()), table) * BLOCK_SIZE
                tables[table[0]] = table
        return cls(tuple(prefills), num_rows, context, shared)

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(num_tokens for num_tokens, _ in self.prefills)

    def prefill_ms(self, cost: CostModel) -> float:
        """Predict the part that prefills take."""
        return sum(cost.prefill_ms(num_tokens, start) for num_tokens, start in self.prefills)

    def decode_ms(self, cost: CostModel) -> float:
        """Predict the part that decoding takes."""
        return cost.decode_step_ms(self.num_rows, self.context_tokens, self.shared_tokens) if self.num_rows else 0.0

    def total_ms(self, cost: CostModel) -> float:
        """Predict what the step takes."""
        return cost.step_ms(self.prefills, self.num_rows, self.context_tokens, self.shared_tokens)


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading blocks two tables share: they are equal up to some block, and from there on differ."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[middle - 1] == right[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
