"""The operations by the compiled library, called through ctypes with data pointers.

What the library does not take (other dtypes and head dimensions) goes to the torch twin.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan, PlanArrays
from parrot_kernels.cpu.build import build
from parrot_kernels.cpu.checks import check_attention, check_norm, check_rope
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.cpu.weight_memory import WeightMemory
from parrot_kernels.errors import KernelBuildError, KernelInputError
from parrot_kernels.linear import PackedLinear, check_input, check_weight
from parrot_kernels.torch_backend import TorchBackend

HEAD_DIMS = (64, 128)
MAX_FOLD = 64
"""Query heads of one KV head that fit a tile."""

_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_LINEAR = [_POINTER, _INT64, _INT64, _POINTER, _INT64, _INT64, _POINTER, _POINTER, _INT]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rms_norm": (None, [_POINTER, *[_INT64] * 5, *[_POINTER] * 4, _FLOAT, _INT]),
    "rope_and_store": (
        _INT,
        [*[_POINTER] * 3, *[_INT64] * 3, *[_POINTER] * 2, _INT64, *[_POINTER] * 4, *[_INT64] * 7, _INT],
    ),
    "silu_mul": (None, [_POINTER, _POINTER, _INT64, _INT64, _INT]),
    "packed_bytes": (_INT64, [_INT64, _INT64]),
    "pack": (None, [_POINTER, *[_INT64] * 3, _POINTER, _INT]),
    "linear": (None, _LINEAR),
    "attention": (None, [*[_POINTER] * 8, *[_INT64] * 4, _FLOAT, _FLOAT, _INT64, _INT]),
}
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


_PLAN_ARRAYS = (
    "first_key", "num_keys", "block_start", "blocks", "row_start", "rows", "parts", "positions", "merge_rows",
    "merge_start",
)  # fmt: skip


class _Plan(ctypes.Structure):
    """``Plan`` of attention.cpp."""

    _fields_ = [*((name, _POINTER) for name in _PLAN_ARRAYS), ("pieces", _INT64), ("merges", _INT64)]

    @classmethod
    def of(cls, arrays: PlanArrays) -> _Plan:
        pointers = [getattr(arrays, name).data_ptr() for name in _PLAN_ARRAYS]
        return cls(*pointers, arrays.num_keys.numel(), arrays.merge_rows.numel())


class CpuBackend(TorchBackend):
    """See ``parrot_kernels.backend.Backend`` for the contracts.

    Uses ``torch.get_num_threads()`` threads of the OpenMP runtime that torch uses; results do not depend on how many.
    ``variant`` is the CPU's best by default. Raises ``KernelBuildError``.
    """

    name = "cpu"

    def __init__(self, variant: Variant | None = None) -> None:
        supported = supported_variants()
        if not supported or (variant is not None and variant not in supported):
            wanted = variant.value if variant else "AVX2 or AVX-512"
            raise KernelBuildError(f"the compiled operations need a Linux on x86-64 whose CPU has {wanted}")
        self.variant = variant or supported[0]
        path = build(self.variant)
        try:
            library = ctypes.CDLL(str(path))
            self._functions = {
                (name, dtype): _bind(library, f"parrot_{name}_{suffix}", *signature)
                for name, signature in _SIGNATURES.items()
                for dtype, suffix in _SUFFIXES.items()
            }
            self._linear = {
                (torch.float32, torch.float32): self._functions["linear", torch.float32],
                (torch.bfloat16, torch.bfloat16): self._functions["linear", torch.bfloat16],
                (torch.bfloat16, torch.float32): _bind(library, "parrot_linear_bf16_f32", None, _LINEAR),
            }
        except (OSError, AttributeError) as error:
            raise KernelBuildError(f"the compiled operations do not load ({error}): delete {path}") from error
        self._weights = WeightMemory()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm without a residual; rows of [tokens, dim] and [tokens, heads, dim] may be strided."""
        function = self._functions.get(("rms_norm", x.dtype))
        if function is None:
            return super().rms_norm(x, weight, eps)
        dim = check_norm(x, weight)
        if not 2 <= x.ndim <= 3 or x.stride(-1) != 1:
            return self.rms_norm(x.reshape(-1, dim).contiguous(), weight, eps).view(x.shape)
        inner, inner_stride = (x.shape[1], x.stride(1)) if x.ndim == 3 else (1, 0)
        out = torch.empty(x.shape, dtype=x.dtype)
        if x.numel():
            function(
                x.data_ptr(), x.shape[0], inner, dim, x.stride(0), inner_stride, None, weight.data_ptr(),
                out.data_ptr(), None, eps, torch.get_num_threads(),
            )  # fmt: skip
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Norm of the sum; both are made contiguous first if they are not."""
        function = self._functions.get(("rms_norm", x.dtype))
        if function is None:
            return super().add_rms_norm(x, residual, weight, eps)
        dim = check_norm(x, weight)
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise KernelInputError(f"a residual {residual.dtype} {tuple(residual.shape)} for {tuple(x.shape)}")
        x, residual = x.contiguous(), residual.contiguous()
        out, total = torch.empty_like(x), torch.empty_like(x)
        if x.numel():
            function(
                x.data_ptr(), x.numel() // dim, 1, dim, dim, 0, residual.data_ptr(), weight.data_ptr(),
                out.data_ptr(), total.data_ptr(), eps, torch.get_num_threads(),
            )  # fmt: skip
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
    ) -> Tensor:
        """Rotate and store; the heads of a token must be contiguous (they are made so if not)."""
        function = self._functions.get(("rope_and_store", query.dtype))
        if function is None:
            return super().rope_and_store(query, key, value, cos, sin, slots, key_cache, value_cache)
        check_rope(query, key, value, cos, sin, slots, key_cache, value_cache)
        query, key, value = _with_contiguous_heads(query), _with_contiguous_heads(key), _with_contiguous_heads(value)
        cos, sin, slots = cos.contiguous(), sin.contiguous(), slots.contiguous()
        tokens, heads, dim = query.shape
        num_blocks, kv_heads, block_size, value_dim = value_cache.shape
        out = torch.empty(query.shape, dtype=query.dtype)
        bad = function(
            query.data_ptr(), key.data_ptr(), value.data_ptr(), query.stride(0), key.stride(0), value.stride(0),
            cos.data_ptr(), sin.data_ptr(), cos.shape[1], slots.data_ptr(), out.data_ptr(), key_cache.data_ptr(),
            value_cache.data_ptr(), heads, kv_heads, dim, value_dim, block_size, tokens, num_blocks * block_size,
            torch.get_num_threads(),
        )  # fmt: skip
        if bad:
            raise KernelInputError(f"a slot outside the cache of {num_blocks} blocks")
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
    ) -> tuple[Tensor, Tensor]:
        """Attend by the plan's pieces: head_dim 64 or 128, up to 64 query heads a KV head."""
        function = self._functions.get(("attention", query.dtype))
        check_attention(query, key_cache, value_cache, plan)
        tokens, heads, dim = query.shape
        kv_heads = key_cache.shape[1]
        has_dims = dim in HEAD_DIMS and key_cache.shape == value_cache.shape
        if function is None or not has_dims or heads // kv_heads > MAX_FOLD:
            return super().paged_attention(
                query, key_cache, value_cache, plan, scale=scale, softcap=softcap, window=window
            )
        query = _with_contiguous_heads(query)
        out = torch.empty(query.shape, dtype=query.dtype)
        lse = torch.empty(tokens, heads)
        arrays = plan.arrays
        part_out, part_lse = torch.empty(arrays.num_parts, heads, dim), torch.empty(arrays.num_parts, heads)
        function(
            ctypes.addressof(_native(plan)), query.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(),
            out.data_ptr(), lse.data_ptr(), part_out.data_ptr(), part_lse.data_ptr(), heads, kv_heads,
            query.stride(0), dim, scale, softcap or 0.0, window or 0, torch.get_num_threads(),
        )  # fmt: skip
        return out, lse

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Gate; ``gate_up`` is made contiguous first if it is not."""
        function = self._functions.get(("silu_mul", gate_up.dtype))
        if function is None:
            return super().silu_mul(gate_up)
        *shape, double = gate_up.shape
        if double % 2:
            raise KernelInputError(f"{double} columns are no gate and up of the same width")
        gate_up = gate_up.contiguous()
        out = torch.empty(*shape, double // 2, dtype=gate_up.dtype)
        if out.numel():
            rows = out.numel() // out.shape[-1]
            function(gate_up.data_ptr(), out.data_ptr(), rows, out.shape[-1], torch.get_num_threads())
        return out

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Copy a float32 or bfloat16 weight into panels (see panels.h); its rows may be strided."""
        pack = self._functions.get(("pack", weight.dtype))
        if pack is None:
            return super().pack_linear(weight, bias)
        check_weight(weight, bias)
        out_features, in_features = weight.shape
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        data = self._weights.take(self._functions["packed_bytes", weight.dtype](out_features, in_features))
        if weight.numel():
            pack(
                weight.data_ptr(), weight.stride(0), out_features, in_features, data.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        bias = bias.detach().clone(memory_format=torch.contiguous_format) if bias is not None else None
        return PackedLinear(out_features, in_features, weight.dtype, data, bias, packed=True)

    def linear(self, x: Tensor, packed: PackedLinear, *, dtype: torch.dtype | None = None) -> Tensor:
        """Multiply by the panels; rows of a matrix may be strided. A row's result depends on nothing but the row."""
        if not packed.packed:
            return super().linear(x, packed, dtype=dtype)
        dtype = check_input(x, packed, dtype)
        rows = x if x.ndim == 2 and x.stride(1) == 1 else x.reshape(-1, packed.in_features).contiguous()
        out = torch.empty(*x.shape[:-1], packed.out_features, dtype=dtype)
        if out.numel():
            self._linear[x.dtype, dtype](
                rows.data_ptr(), rows.stride(0), rows.shape[0], packed.data.data_ptr(), packed.in_features,
                packed.out_features, packed.bias.data_ptr() if packed.bias is not None else None, out.data_ptr(),
                torch.get_num_threads(),
            )  # fmt: skip
        return out


def _bind(library: ctypes.CDLL, name: str, restype: Any, argtypes: list[Any]) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = restype, argtypes
    return function


def _native(plan: AttentionPlan) -> _Plan:
    if not isinstance(plan.native, _Plan):
        plan.native = _Plan.of(plan.arrays)
    return plan.native


def _with_contiguous_heads(x: Tensor) -> Tensor:
    """Return ``x`` [tokens, heads, dim] such that only the stride between tokens is free."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
