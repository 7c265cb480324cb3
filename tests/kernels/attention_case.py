"""A paged cache with sequences that share prefixes, and what attention over it must give, in float64."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import AttentionPlan

BLOCK = 16


class AttentionCase:
    """Sequences (prefix path, context_len, query_len): a path names the blocks that those with the same start share.

    A path is a tuple of (name, blocks); a sequence's first blocks are the path's, the rest its own.
    """

    def __init__(
        self,
        sequences: list[tuple[tuple[tuple[str, int], ...], int, int]],
        heads: tuple[int, int],
        dim: int,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.tables: list[list[int]] = []
        named: dict[tuple[tuple[str, int], ...], list[int]] = {}
        used = 1  # block 0 belongs to nobody
        for path, context, _ in sequences:
            table: list[int] = []
            for depth in range(len(path)):
                node = path[: depth + 1]
                if node not in named:
                    named[node] = list(range(used, used + path[depth][1]))
                    used += path[depth][1]
                table += named[node]
            own = -(-context // BLOCK) - len(table)
            table = table[: -(-context // BLOCK)] + list(range(used, used + max(own, 0)))
            used += max(own, 0)
            self.tables.append(table)
        self.contexts = [context for _, context, _ in sequences]
        self.query_lens = [query for _, _, query in sequences]
        self.heads, self.kv_heads = heads
        order = torch.randperm(used)
        self.tables = [[int(order[block]) for block in table] for table in self.tables]
        self.key_cache = torch.randn(used, self.kv_heads, BLOCK, dim).to(dtype)
        self.value_cache = torch.randn(used, self.kv_heads, BLOCK, dim).to(dtype)
        self.query = torch.randn(sum(self.query_lens), self.heads, dim).to(dtype)
        self.scale = dim**-0.5

    def plan(self, share: bool = True, padding: int = 0) -> AttentionPlan:
        num_rows = sum(self.query_lens) + padding
        return AttentionPlan(self.query_lens, self.contexts, self.tables, share=share, num_rows=num_rows)

    def to(self, device: torch.device) -> AttentionCase:
        """Move query and caches there; what is expected is computed where they are, in float64."""
        self.query, self.key_cache, self.value_cache = (
            tensor.to(device) for tensor in (self.query, self.key_cache, self.value_cache)
        )
        return self

    def expected(self, softcap: float | None = None, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (out, lse), row by row and written out."""
        outs, lses, row = [], [], 0
        fold = self.heads // self.kv_heads
        for table, context, length in zip(self.tables, self.contexts, self.query_lens, strict=True):
            keys = self.key_cache[table].transpose(1, 2).flatten(0, 1).double()
            values = self.value_cache[table].transpose(1, 2).flatten(0, 1).double()
            for position in range(context - length, context):
                seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
                k, v = keys[seen].repeat_interleave(fold, 1), values[seen].repeat_interleave(fold, 1)
                scores = torch.einsum("hd,nhd->hn", self.query[row].double(), k) * self.scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                outs.append(torch.einsum("hn,nhd->hd", scores.softmax(-1), v))
                lses.append(scores.logsumexp(-1))
                row += 1
        return torch.stack(outs), torch.stack(lses)


SYSTEM = (("system", 5),)
SHAPES: dict[str, list[tuple[tuple[tuple[str, int], ...], int, int]]] = {
    "one request": [((), 1, 1)],
    "block borders": [((), length, 1) for length in (15, 16, 17, 63, 64, 65)],
    "ragged, no sharing": [((), 100, 1), ((), 40, 7), ((), 17, 17), ((), 90, 70)],
    "shared": [(SYSTEM, length, 1) for length in (81, 90, 130, 96)],
    "empty suffix": [(SYSTEM, 80, 1), (SYSTEM, 80, 3), (SYSTEM, 81, 1)],
    "nested, two groups, and prefill": [
        ((*SYSTEM, ("tools", 4)), 150, 1),
        ((*SYSTEM, ("tools", 4)), 145, 2),
        (SYSTEM, 120, 40),
        (SYSTEM, 95, 1),
        ((("other", 6),), 100, 5),
        ((("other", 6),), 97, 1),
        ((("short", 1),), 30, 1),
        ((("short", 1),), 31, 1),
    ],
}

PATHS = st.sampled_from(["", "a", "ab", "abc", "abd", "b", "bc", "c"])
"""Each letter is six blocks that are shared by all whose path starts alike."""


def tables(sequences: list[tuple[str, int, int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Return (query_lens, contexts, tables) of sequences (path, tokens after it, new tokens at most)."""
    named: dict[str, list[int]] = {}
    result = []
    used = 0
    contexts = [96 * len(path) + own for path, own, _ in sequences]
    for (path, _, _), context in zip(sequences, contexts, strict=True):
        table: list[int] = []
        for depth in range(len(path)):
            if path[: depth + 1] not in named:
                named[path[: depth + 1]] = list(range(used, used + 6))
                used += 6
            table += named[path[: depth + 1]]
        own = -(-context // 16) - len(table) + 1  # one more than is needed, as an engine that looks ahead has
        result.append([*table, *range(used, used + own)])
        used += own
    return [min(new, context) for (_, _, new), context in zip(sequences, contexts, strict=True)], contexts, result
