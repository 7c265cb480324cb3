"""The operations by the compiled library, called through ctypes with data pointers.

What the library does not take (other dtypes and head dimensions) goes to the torch twin.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import (
    check_attention,
    check_gate_up,
    check_gather,
    check_index,
    check_norm,
    check_plan,
    check_rope,
    check_sampling,
    with_contiguous_heads,
)
from parrot_kernels.cpu.build import build
from parrot_kernels.cpu.library import (
    OUTSIDE,
    SUFFIXES,
    Attention,
    Gather,
    GatherPacked,
    Library,
    Linear,
    Operation,
    RmsNorm,
    Rope,
    Sampling,
    SiluMul,
)
from parrot_kernels.cpu.plan import NativePlan
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.cpu.weight_memory import WeightMemory
from parrot_kernels.errors import KernelBuildError, KernelCaptureError, KernelInputError
from parrot_kernels.fp8 import FP8
from parrot_kernels.linear import PackedLinear, check_input, check_weight
from parrot_kernels.torch_backend import TorchBackend

if TYPE_CHECKING:
    from parrot_kernels.backend import CapturedStep, Step

logger = logging.getLogger(__name__)

HEAD_DIMS = (64, 128)
MAX_FOLD = 64
"""Query heads of one KV head that fit a tile."""


class CpuBackend(TorchBackend):
    """See ``parrot_kernels.backend.Backend`` for the contracts.

    Uses ``torch.get_num_threads()`` threads of the OpenMP runtime that torch uses; results do not depend on how many.
    ``variant`` is the CPU's best by default. Raises ``KernelBuildError``.

    Every operation is an ``Operation`` given to ``_compute`` (or ``_attend``); ``Recorder`` overrides those two, and
    ``_empty``, to write the operations down.
    """

    name = "cpu"

    def __init__(self, variant: Variant | None = None) -> None:
        supported = supported_variants()
        if not supported or (variant is not None and variant not in supported):
            wanted = variant.value if variant else "AVX2 or AVX-512"
            raise KernelBuildError(f"the compiled operations need a Linux on x86-64 whose CPU has {wanted}")
        self.variant = variant or supported[0]
        self.library = Library(build(self.variant))
        self._weights = WeightMemory()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm without a residual; rows of [tokens, dim] and [tokens, heads, dim] may be strided."""
        if x.dtype not in SUFFIXES:
            return super().rms_norm(x, weight, eps)
        dim = check_norm(x, weight)
        if not 2 <= x.ndim <= 3 or x.stride(-1) != 1:
            return self.rms_norm(x.reshape(-1, dim).contiguous(), weight, eps).view(x.shape)
        inner, inner_stride = (x.shape[1], x.stride(1)) if x.ndim == 3 else (1, 0)
        out = self._empty(x, x.shape[1:], x.dtype)
        operation = RmsNorm(
            x.data_ptr(), None, weight.data_ptr(), out.data_ptr(), None, inner, dim, x.stride(0), inner_stride, 0, eps
        )
        self._compute("rms_norm", x.dtype, operation, [x], [weight])
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Norm of the sum; rows may be strided."""
        if x.dtype not in SUFFIXES:
            return super().add_rms_norm(x, residual, weight, eps)
        dim = check_norm(x, weight, residual)
        if x.ndim != 2 or x.stride(1) != 1 or residual.stride(1) != 1:
            flat, other = (each.reshape(-1, dim).contiguous() for each in (x, residual))
            normed, total = self.add_rms_norm(flat, other, weight, eps)
            return normed.view(x.shape), total.view(x.shape)
        out, total = self._empty(x, [dim], x.dtype), self._empty(x, [dim], x.dtype)
        operation = RmsNorm(
            x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), total.data_ptr(), 1, dim,
            x.stride(0), 0, residual.stride(0), eps,
        )  # fmt: skip
        self._compute("rms_norm", x.dtype, operation, [x, residual], [weight])
        return out, total

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
        """Rotate and store; the heads of a token must be contiguous (they are made so if not)."""
        if query.dtype in SUFFIXES:
            check_rope(query, key, value, cos, sin, slots, key_cache, value_cache)
        if query.dtype not in SUFFIXES or key_cache.dtype is FP8:
            return super().rope_and_store(
                query, key, value, cos, sin, slots, key_cache, value_cache, key_scale=key_scale, value_scale=value_scale
            )
        query, key, value = with_contiguous_heads(query), with_contiguous_heads(key), with_contiguous_heads(value)
        slots = slots.contiguous()
        if (cos.shape[1] and not cos.stride(1) == sin.stride(1) == 1) or cos.stride(0) != sin.stride(0):
            cos, sin = cos.contiguous(), sin.contiguous()
        angles = [cos, sin] if cos.shape[1] else []
        _, heads, dim = query.shape
        num_blocks, kv_heads, block_size, value_dim = value_cache.shape
        out = self._empty(query, query.shape[1:], query.dtype)
        operation = Rope(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr(),
            out.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(), query.stride(0), key.stride(0),
            value.stride(0), cos.stride(0), cos.shape[1], heads, kv_heads, dim, value_dim, block_size,
            num_blocks * block_size,
        )  # fmt: skip
        self._compute("rope", query.dtype, operation, [query, key, value, slots, *angles], [key_cache, value_cache])
        return out

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
        """Attend by the plan's pieces: head_dim 64 or 128, up to 64 query heads a KV head."""
        check_attention(query, key_cache, value_cache, [FP8])
        (_, heads, dim), kv_heads = query.shape, key_cache.shape[1]
        has_dims = dim in HEAD_DIMS and key_cache.shape == value_cache.shape
        if query.dtype not in SUFFIXES or key_cache.dtype is FP8 or not has_dims or heads // kv_heads > MAX_FOLD:
            check_plan(plan, query.shape[0], key_cache.shape[0])
            return super().paged_attention(
                query, key_cache, value_cache, plan,
                scale=scale, softcap=softcap, window=window, key_scale=key_scale, value_scale=value_scale,
            )  # fmt: skip
        query = with_contiguous_heads(query)
        out, lse = self._empty(query, query.shape[1:], query.dtype), self._empty(query, [heads], torch.float32)
        operation = Attention(
            query.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(), out.data_ptr(), lse.data_ptr(), heads,
            kv_heads, query.stride(0), dim, window or 0, scale, softcap or 0.0,
        )  # fmt: skip
        self._attend(operation, query, key_cache, value_cache, plan)
        return out, lse

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Gate; rows of [tokens, 2 * width] may be strided."""
        if gate_up.dtype not in SUFFIXES:
            return super().silu_mul(gate_up)
        width = check_gate_up(gate_up)
        if gate_up.ndim != 2 or gate_up.stride(1) != 1:
            flat = gate_up.reshape(-1, 2 * width).contiguous()
            return self.silu_mul(flat).view(*gate_up.shape[:-1], width)
        out = self._empty(gate_up, [width], gate_up.dtype)
        operation = SiluMul(gate_up.data_ptr(), out.data_ptr(), width, gate_up.stride(0))
        self._compute("silu_mul", gate_up.dtype, operation, [gate_up], [])
        return out

    def gather(self, table: Tensor | PackedLinear, index: Tensor) -> Tensor:
        """Copy rows, or read them out of panels."""
        if isinstance(table, PackedLinear):
            return self._gather_packed(table, index) if table.packed else self.gather(table.plain, index)
        check_gather(table, index)
        index = index.contiguous()
        out = self._empty(index, [table.shape[1]], table.dtype)
        size = table.dtype.itemsize
        operation = Gather(
            table.data_ptr(), index.data_ptr(), out.data_ptr(), table.shape[0], table.stride(0) * size,
            table.shape[1] * size,
        )  # fmt: skip
        self._compute("gather", None, operation, [index], [table])
        return out

    def _gather_packed(self, table: PackedLinear, index: Tensor) -> Tensor:
        check_index(index)
        index = index.contiguous()
        out = self._empty(index, [table.in_features], table.dtype)
        operation = GatherPacked(
            table.data.data_ptr(), table.in_features, table.out_features, None, index.data_ptr(), out.data_ptr()
        )
        self._compute("gather_packed", table.dtype, operation, [index], [table])
        return out

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Copy a float32 or bfloat16 weight into panels (see panels.h); its rows may be strided."""
        if weight.dtype not in SUFFIXES:
            return super().pack_linear(weight, bias)
        check_weight(weight, bias)
        out_features, in_features = weight.shape
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        suffix = SUFFIXES[weight.dtype]
        data = self._weights.take(self.library.packed_bytes["packed_bytes" + suffix](out_features, in_features))
        if weight.numel():
            self.library.pack["pack" + suffix](
                weight.data_ptr(), weight.stride(0), out_features, in_features, data.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        bias = bias.detach().clone(memory_format=torch.contiguous_format) if bias is not None else None
        return PackedLinear(out_features, in_features, weight.dtype, data, bias, packed=True)

    def linear(self, x: Tensor, packed: PackedLinear, dtype: torch.dtype | None = None) -> Tensor:
        """Multiply by the panels; rows of a matrix may be strided. A row's result depends on nothing but the row."""
        if not packed.packed:
            return super().linear(x, packed, dtype=dtype)
        dtype = check_input(x, packed, dtype)
        if x.ndim != 2 or x.stride(1) != 1:
            flat = x.reshape(-1, packed.in_features).contiguous()
            return self.linear(flat, packed, dtype).view(*x.shape[:-1], packed.out_features)
        out = self._empty(x, [packed.out_features], dtype)
        operation = Linear(
            x.data_ptr(), out.data_ptr(), packed.data.data_ptr(), packed.in_features, packed.out_features,
            packed.bias.data_ptr() if packed.bias is not None else None, x.stride(0), packed.out_features,
        )  # fmt: skip
        self._compute("linear", x.dtype, operation, [x], [packed], "" if dtype == x.dtype else SUFFIXES[dtype])
        return out

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
    ) -> Tensor:
        """Draw without a sort, a row by one thread; all tokens equal to the last one in ``top_p`` are kept."""
        _, vocab = check_sampling(logits, temperature, top_k, top_p, min_p, keys)
        ids = self._empty(logits, [], torch.int64)
        operation = Sampling(
            logits.data_ptr(), temperature.data_ptr(), top_p.data_ptr(), min_p.data_ptr(), top_k.data_ptr(),
            keys.data_ptr(), ids.data_ptr(), logits.stride(0), vocab,
        )  # fmt: skip
        self._compute("sample", None, operation, [logits, temperature, top_k, top_p, min_p, keys], [])
        return ids

    def capture(
        self,
        step: Step,
        tokens: Sequence[Tensor],
        picked: Sequence[Tensor],
        *,
        buckets: Sequence[int] = (),
        max_context: int = 0,
    ) -> CapturedStep | None:
        """Record a program, see ``parrot_kernels.cpu.recorder``; it takes any number of rows."""
        from parrot_kernels.cpu.recorder import Recorder  # which is a CpuBackend itself

        try:
            return Recorder(self, tokens, picked).record(step)
        except KernelCaptureError as error:
            logger.warning("the model's step runs eagerly, which is slower: %s", error)
            return None

    def _empty(self, rows_like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return room for a result that has a row [*shape] for each row of ``rows_like``."""
        return torch.empty(rows_like.shape[0], *shape, dtype=dtype)

    def _compute(
        self,
        kind: str,
        dtype: torch.dtype | None,
        operation: Operation,
        by_row: Sequence[Tensor],
        whole: Sequence[object],
        suffix: str = "",
    ) -> None:
        """Run ``operation``: row i of its results is made of row i of ``by_row``, and of ``whole``."""
        name = kind + (SUFFIXES[dtype] if dtype is not None else "") + suffix
        if self.library.compute[name](ctypes.addressof(operation), by_row[0].shape[0], torch.get_num_threads()):
            raise KernelInputError(OUTSIDE[kind])

    def _attend(
        self, operation: Attention, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan
    ) -> None:
        check_plan(plan, query.shape[0], key_cache.shape[0])
        native = NativePlan.of(self.library, plan)
        _, heads, dim = query.shape
        num_parts = native.plan.num_parts
        part_out, part_lse = torch.empty(num_parts, heads, dim), torch.empty(num_parts, heads)
        self.library.attend["attention" + SUFFIXES[query.dtype]](
            ctypes.addressof(operation), native.address, part_out.data_ptr(), part_lse.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
