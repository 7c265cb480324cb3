"""How a step's plan differs from that of the step before."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from parrot_kernels.attention_plan import BLOCK_SIZE, MAX_SHARED_QUERY, AttentionPlan


class Change(enum.Enum):
    """What an update had to do."""

    POSITIONS = "positions"
    """Every sequence reads the blocks of the step before."""
    GROWN = "grown"
    """Some sequences got blocks at their end."""
    CUT = "cut"
    """The plan was cut anew."""


class BlocksRead:
    """The blocks that each sequence of a step reads, to tell how the next step differs.

    A copy of the plan's, for block tables grow and change under way. Comparing it with the next plan's tables takes
    some nanoseconds a block, for the numbers are mostly the same objects; every other way to look at them takes ten
    times that.
    """

    def __init__(self, plan: AttentionPlan) -> None:
        self._query_lens = list(plan.query_lens)
        self._contexts = list(plan.context_lens)
        self._first_rows = plan.first_rows
        self._blocks = [
            list(table[: _num_blocks(context)])
            for table, context in zip(plan.block_tables, plan.context_lens, strict=True)
        ]
        self._shape = (plan.num_tokens, plan.share)

    def growth(self, after: AttentionPlan) -> dict[int, Sequence[int]] | None:
        """Return the blocks that ``after`` adds, by the first rows of their sequences; None if more has changed."""
        if self._shape != (after.num_tokens, after.share) or self._query_lens != list(after.query_lens):
            return None
        grown: dict[int, Sequence[int]] = {}
        for i, (context, table, blocks) in enumerate(
            zip(after.context_lens, after.block_tables, self._blocks, strict=True)
        ):
            if self._query_lens[i] > MAX_SHARED_QUERY and context != self._contexts[i]:
                return None
            had, has = len(blocks), _num_blocks(context)
            if has < had or _first(table, had) != blocks:
                return None
            if has > had:
                grown[self._first_rows[i]] = table[had:has]
        return grown

    def advance(self, after: AttentionPlan, grown: dict[int, Sequence[int]]) -> None:
        """Go on to ``after``, which differs by ``grown``."""
        self._contexts = list(after.context_lens)
        if grown:
            for row, blocks in zip(self._first_rows, self._blocks, strict=True):
                blocks += grown.get(row, ())


def _num_blocks(num_keys: int) -> int:
    return -(-num_keys // BLOCK_SIZE)


def _first(table: Sequence[int], count: int) -> list[int]:
    """Return the first blocks of ``table``; the table itself if it is a list of no more."""
    return table if isinstance(table, list) and len(table) == count else list(table[:count])
