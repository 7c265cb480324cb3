"""torch's flex_attention over pages: a block mask says which pages of the pool a request sees.

It has a layout of its own, heads outside, with pages of 128 keys that begin at each node of the tree; nothing is
gathered. Compiled on a GPU; on a CPU its reference runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.gpu.attention_case import AttentionCase
from parrot_kernels.attention_plan import BLOCK_SIZE

PAGE = 128


class FlexAttention:
    """``torch.compile``d for every case anew, which takes seconds and is not counted."""

    name = "flex_attention"

    def missing(self, device: torch.device) -> str | None:
        return None

    def prepare(self, case: AttentionCase) -> PagedFlex:
        if case.device.type != "cuda":
            return PagedFlex(case, _reference)
        torch.compiler.reset()  # after a few shapes it would give up compiling for one more
        return PagedFlex(case, torch.compile(flex_attention, dynamic=False))


def _reference(*operands: Tensor, **options: Any) -> Tensor:
    """Call it uncompiled, which it warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        out: Tensor = flex_attention(*operands, **options)
        return out


class PagedFlex:
    """See ``Prepared``."""

    def __init__(self, case: AttentionCase, attend: Callable[..., Tensor]) -> None:
        self._case, self._attend = case, attend
        self._query = case.query[:, :, None]
        self._keys, self._values = ([self._pool(layer) for layer in cache] for cache in (case.keys, case.values))
        self._is_key = self._pool(torch.ones_like(case.keys[0, :, :1, :, :1]))[0, 0, :, 0] > 0
        self.plan()

    def _pool(self, cache: Tensor) -> Tensor:
        """Return [1, heads, pages * PAGE, dim] of a layer's cache [blocks, heads, 16, dim]: nodes, each padded."""
        levels, first = [], 0
        for width, length in zip(self._case.tree.widths, self._case.tree.lengths, strict=True):
            count = width * length // BLOCK_SIZE
            nodes = cache[first : first + count].unflatten(0, (width, -1))  # [nodes, blocks, heads, 16, dim]
            keys = nodes.permute(2, 0, 1, 3, 4).flatten(2, 3)  # [heads, nodes, keys, dim]
            levels.append(F.pad(keys, (0, 0, 0, -length % PAGE)).flatten(1, 2))
            first += count
        return torch.cat(levels, 1)[None]

    def run(self, layer: int) -> Tensor:
        case = self._case
        out = self._attend(
            self._query,
            self._keys[layer],
            self._values[layer],
            block_mask=self._mask,
            scale=case.scale,
            enable_gqa=True,
        )
        return out[:, :, 0]

    def plan(self) -> None:
        whole, cut = self._pages()
        num_pages = self._is_key.shape[0] // PAGE
        is_key = self._is_key
        has_page = torch.zeros(len(whole), num_pages, dtype=torch.bool)
        for request, (of_keys, padded) in enumerate(zip(whole, cut, strict=True)):
            has_page[request, [*of_keys, *padded]] = True
        has_page = has_page.to(self._case.device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Compiled, it is asked only about the pages with padding; the reference asks it about every key.
            return is_key[key] & has_page[batch, key // PAGE]

        self._mask = BlockMask.from_kv_blocks(
            *self._lists(cut, num_pages),
            *self._lists(whole, num_pages),
            BLOCK_SIZE=(PAGE, PAGE),
            mask_mod=sees,
            seq_lengths=(1, num_pages * PAGE),
        )

    def advance(self) -> None:
        """Plan anew: the mask is what says where a request ends."""
        self.plan()

    def _pages(self) -> tuple[list[list[int]], list[list[int]]]:
        """Return the pages that each request sees: those full of keys, and those with padding behind."""
        tree = self._case.tree
        whole: list[list[int]] = [[] for _ in range(tree.num_requests)]
        cut: list[list[int]] = [[] for _ in range(tree.num_requests)]
        first = 0
        for width, length in zip(tree.widths, tree.lengths, strict=True):
            count = -(-length // PAGE)
            for request in range(tree.num_requests):
                start = first + request * width // tree.num_requests * count
                whole[request] += range(start, start + length // PAGE)
                cut[request] += range(start + length // PAGE, start + count)
            first += width * count
        return whole, cut

    def _lists(self, pages: list[list[int]], num_pages: int) -> tuple[Tensor, Tensor]:
        """Return (numbers [requests, 1, 1], pages [requests, 1, 1, num_pages]) as a block mask takes them."""
        numbers = torch.tensor([len(row) for row in pages], dtype=torch.int32)
        padded = torch.tensor([row + [0] * (num_pages - len(row)) for row in pages], dtype=torch.int32)
        return numbers.view(-1, 1, 1).to(self._case.device), padded[:, None, None].to(self._case.device)
