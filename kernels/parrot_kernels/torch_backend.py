"""The operations in torch alone: the twins of the compiled ones, for any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import check_plan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.fp8 import movable, to_cache
from parrot_kernels.linear import PackedLinear, check_input, check_weight
from parrot_kernels.paged_attention import paged_attention
from parrot_kernels.sampling import sample

if TYPE_CHECKING:
    from parrot_kernels.backend import CapturedStep, Step


class TorchBackend:
    """See ``parrot_kernels.backend.Backend`` for the contracts. Arithmetic is float32, or float64 for float64 input."""

    name = "torch"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (normed * weight).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (rms_norm(x + residual), x + residual)."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

    def rope_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> Tensor:
        """Return the rotated query; write the rotated key and the value to ``slots``."""
        num_blocks, _, block_size, _ = key_cache.shape
        if bool((slots >= num_blocks * block_size).any()):
            raise KernelInputError(f"a slot outside the cache of {num_blocks} blocks")
        kept = slots >= 0
        block, offset = slots[kept] // block_size, slots[kept] % block_size
        rotated = to_cache(_rotate(key[kept], cos[kept], sin[kept]), key_cache.dtype, key_scale)
        kept_value = to_cache(_wide(value[kept]), value_cache.dtype, value_scale)
        movable(key_cache)[block, :, offset] = movable(rotated)
        movable(value_cache)[block, :, offset] = movable(kept_value)
        return _rotate(query, cos, sin).to(query.dtype)

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Attend sequence by sequence: in torch, parts and their merge cost more than a shared read saves."""
        check_plan(plan, query.shape[0], key_cache.shape[0])
        return paged_attention(
            query, key_cache, value_cache, plan,
            scale=scale, softcap=softcap, window=window, key_scale=key_scale, value_scale=value_scale,
        )  # fmt: skip

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        wide = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32))
        gate, up = wide.chunk(2, -1)
        return (F.silu(gate) * up).to(gate_up.dtype)

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Keep the weight as it is."""
        check_weight(weight, bias)
        out_features, in_features = weight.shape
        return PackedLinear(out_features, in_features, weight.dtype, weight, bias, packed=False)

    def linear(self, x: Tensor, packed: PackedLinear, dtype: torch.dtype | None = None) -> Tensor:
        """Return x @ weight.T + bias; a result in float32 has been rounded to x.dtype."""
        dtype = check_input(x, packed, dtype)
        return F.linear(x, packed.plain, packed.bias).to(dtype)

    def gather(self, table: Tensor | PackedLinear, index: Tensor) -> Tensor:
        """Return the rows ``index`` of ``table``."""
        return (table.plain if isinstance(table, PackedLinear) else table).index_select(0, index)

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
    ) -> Tensor:
        """Sort where top-k or top-p ask for it; of tokens equal to the last one in ``top_p`` some are kept."""
        return sample(logits, temperature, top_k, top_p, min_p, keys)

    def capture(
        self,
        step: Step,
        tokens: Sequence[Tensor],
        picked: Sequence[Tensor],
        *,
        buckets: Sequence[int] = (),
        max_context: int = 0,
    ) -> CapturedStep | None:
        """Torch computes step by step."""
        return None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x`` rotated, in float32 (or float64)."""
    half = cos.shape[-1]
    wide = _wide(x)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)
