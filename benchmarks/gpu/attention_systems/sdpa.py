"""torch's scaled-dot-product attention: the pages are gathered, then attended to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.attention_case import AttentionCase


class Sdpa:
    """All requests of a case are of one length, so there is no padding and no mask."""

    name = "torch_sdpa"

    def missing(self, device: torch.device) -> str | None:
        return None

    def prepare(self, case: AttentionCase) -> SdpaAttention:
        return SdpaAttention(case)


class SdpaAttention:
    """See ``Prepared``."""

    def __init__(self, case: AttentionCase) -> None:
        self._case = case
        self.plan()

    def run(self, layer: int) -> Tensor:
        case, shape = self._case, self._case.shape
        size = (case.tree.num_requests, shape.kv_heads, case.tree.context, shape.head_dim)
        # A page of a head is a row: [requests, kv_heads, pages] of them make the keys of all.
        keys, values = (
            cache[layer].flatten(2).flatten(0, 1).index_select(0, self._pages).view(size)
            for cache in (case.keys, case.values)
        )
        out = F.scaled_dot_product_attention(case.query[:, :, None], keys, values, scale=case.scale, enable_gqa=True)
        return out[:, :, 0]

    def plan(self) -> None:
        case = self._case
        blocks = torch.tensor(case.tables).to(case.device)
        heads = torch.arange(case.shape.kv_heads, device=case.device)
        self._pages = (blocks[:, None, :] * case.shape.kv_heads + heads[None, :, None]).flatten()

    def advance(self) -> None:
        """Plan anew: there is nothing to keep."""
        self.plan()
