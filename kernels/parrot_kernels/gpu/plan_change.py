"""How a step's plan differs from that of the step before."""

from __future__ import annotations

import array
import enum
import itertools
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
    """The blocks that each sequence of a plan reads, to tell how the next plan differs."""

    def __init__(self, plan: AttentionPlan) -> None:
        self._query_lens = array.array("i", plan.query_lens)
        self._contexts = array.array("i", plan.context_lens)
        self._first_rows = plan.first_rows
        self._starts = array.array("i", itertools.accumulate(map(len, plan.block_tables), initial=0))
        self._tables = plan.flat_tables
        self._shape = (plan.num_tokens, plan.share)

    def growth(self, after: BlocksRead) -> dict[int, Sequence[int]] | None:
        """Return the blocks that were added, by the first rows of their sequences; None if more has changed."""
        if self._shape != after._shape or self._query_lens != after._query_lens:
            return None
        is_same = self._starts == after._starts and self._tables == after._tables
        grown: dict[int, Sequence[int]] = {}
        for i, query_len in enumerate(self._query_lens):
            before, now = self._contexts[i], after._contexts[i]
            if query_len > MAX_SHARED_QUERY and before != now:
                return None
            had, has = -(-before // BLOCK_SIZE), -(-now // BLOCK_SIZE)
            if has < had or not (is_same or self._blocks(i, 0, had) == after._blocks(i, 0, had)):
                return None
            if has > had:
                grown[self._first_rows[i]] = after._blocks(i, had, has)
        return grown

    def _blocks(self, i: int, first: int, end: int) -> array.array[int]:
        return self._tables[self._starts[i] + first : self._starts[i] + end]
