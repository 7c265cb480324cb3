"""Sequences of a step that torch computes as one padded batch.

Python then runs per group and not per token. All index tensors are made once a step and serve every layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from parrot_kernels.attention_plan import AttentionPlan

MAX_PADDED_QUERY = 64
"""Chunks longer than this are computed alone, without padding."""
SMALL_CONTEXT = 128
"""Contexts up to this length share a group whatever their ratio: padding them costs less than a call."""


class QueryGroup:
    """Sequences computed as one padded batch of S sequences, T query rows and M blocks each.

    ``rows`` [S, T] are positions in the flat batch (padding repeats a sequence's last row); None if they are exactly
    ``range(S * T)`` from ``first_row`` on. ``positions`` [S, T] are the rows' positions in their sequences, ``blocks``
    [S, M] the block tables (padded with block 0).
    """

    def __init__(self, plan: AttentionPlan, members: Sequence[int], block_size: int) -> None:
        query_lens = [plan.query_lens[i] for i in members]
        contexts = [plan.context_lens[i] for i in members]
        self.num_seqs = len(members)
        self.num_queries = max(query_lens)
        self.num_blocks = -(-max(contexts) // block_size)
        device = plan.device
        offsets = [plan.first_rows[i] for i in members]
        self.first_row = offsets[0]
        rows = [
            [start + min(t, length - 1) for t in range(self.num_queries)]
            for start, length in zip(offsets, query_lens, strict=True)
        ]
        flat = [row for sequence in rows for row in sequence]
        self.is_contiguous = flat == list(range(self.first_row, self.first_row + len(flat)))
        self.rows = None if self.is_contiguous else torch.tensor(rows, dtype=torch.int64, device=device)
        self.query_lens = query_lens
        first_positions = [context - length for context, length in zip(contexts, query_lens, strict=True)]
        self.cached_len = first_positions[0]
        """Keys before the first query row; meaningful where the group holds one sequence."""
        limit = torch.tensor(query_lens, dtype=torch.int64, device=device)[:, None] - 1
        steps = torch.arange(self.num_queries, device=device)[None, :]
        self.positions = torch.tensor(first_positions, dtype=torch.int64, device=device)[:, None] + steps.minimum(limit)
        tables = [plan.block_tables[i][: self.num_blocks] for i in members]
        padded = [[*table, *[0] * (self.num_blocks - len(table))] for table in tables]
        self.blocks = torch.tensor(padded, dtype=torch.int64, device=device)
        self._block_size = block_size
        self._gathers: dict[int, Tensor] = {}
        self._masks: dict[tuple[torch.dtype, int, int], Tensor] = {}

    @functools.cached_property
    def last_rows(self) -> Tensor:
        """Index [num valid rows] into the padded [S * T] rows: those that are no padding."""
        valid = [s * self.num_queries + t for s, length in enumerate(self.query_lens) for t in range(length)]
        return torch.tensor(valid, dtype=torch.int64, device=self.blocks.device)

    @functools.cached_property
    def is_padded(self) -> bool:
        """Whether some rows are padding."""
        return any(length != self.num_queries for length in self.query_lens)

    def gather_index(self, num_kv_heads: int) -> Tensor:
        """Index [S * num_kv_heads * M] of (block, head) pages in a cache viewed as [blocks * heads, ...]."""
        index = self._gathers.get(num_kv_heads)
        if index is None:
            heads = torch.arange(num_kv_heads, device=self.blocks.device)
            index = (self.blocks[:, None, :] * num_kv_heads + heads[None, :, None]).reshape(-1)
            self._gathers[num_kv_heads] = index
        return index

    def mask(self, dtype: torch.dtype, num_rows_folded: int, window: int | None) -> Tensor:
        """Additive mask [S, 1, G * T, L] (or [S, 1, 1, L] where T = 1): 0 for keys that are seen, -inf for others.

        ``num_rows_folded`` is G, the query heads per KV head, folded in front of T. Key j is seen by the row at
        position p if j <= p and, with a ``window`` w, j > p - w.
        """
        key = (dtype, num_rows_folded, window or 0)
        mask = self._masks.get(key)
        if mask is None:
            keys = torch.arange(self.num_blocks * self._block_size, device=self.blocks.device)
            positions = self.positions[:, :, None]
            seen = keys <= positions
            if window:
                seen &= keys > positions - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            mask = mask[:, None]
            if self.num_queries > 1 and num_rows_folded > 1:
                mask = mask.repeat(1, 1, num_rows_folded, 1)
            self._masks[key] = mask
        return mask


def grouped(query_lens: Sequence[int], context_lens: Sequence[int]) -> list[list[int]]:
    """Return groups of sequences (their numbers) of similar shape, covering every sequence once."""
    classes: dict[int, list[int]] = {}
    groups = []
    for i, length in enumerate(query_lens):
        if length > MAX_PADDED_QUERY:
            groups.append([i])
        else:
            classes.setdefault((length - 1).bit_length(), []).append(i)
    for members in classes.values():
        groups += _split_by_context(members, context_lens)
    return groups


def _split_by_context(members: list[int], context_lens: Sequence[int]) -> list[list[int]]:
    """Cut ``members`` so that no context is padded to more than twice its length (small ones excepted)."""
    lengths = [context_lens[i] for i in members]
    if max(lengths) <= max(SMALL_CONTEXT, 2 * min(lengths)):
        return [members]
    groups: list[list[int]] = []
    longest = 0
    for i in sorted(members, key=lambda i: -context_lens[i]):
        if not groups or longest > max(SMALL_CONTEXT, 2 * context_lens[i]):
            groups.append([])
            longest = context_lens[i]
        groups[-1].append(i)
    return [sorted(group) for group in groups]
