"""A step's attention plan as the compiled kernel reads it."""

from __future__ import annotations

import ctypes

from parrot_kernels.attention_plan import AttentionPlan, PlanArrays
from parrot_kernels.cpu.library import INT64, POINTER

_ARRAYS = (
    "first_key", "num_keys", "block_start", "blocks", "row_start", "rows", "parts", "positions", "merge_rows",
    "merge_start",
)  # fmt: skip


class NativePlan(ctypes.Structure):
    """``Plan`` of attention.h; the memory is the ``PlanArrays``'."""

    _fields_ = [*((name, POINTER) for name in _ARRAYS), ("pieces", INT64), ("merges", INT64), ("parts_in_all", INT64)]

    @classmethod
    def of(cls, plan: AttentionPlan) -> NativePlan:
        """Return what was made of ``plan`` before, or make it."""
        if not isinstance(plan.native, NativePlan):
            plan.native = cls._lay_out(plan.arrays)
        return plan.native

    @classmethod
    def _lay_out(cls, arrays: PlanArrays) -> NativePlan:
        pointers = [getattr(arrays, name).data_ptr() for name in _ARRAYS]
        return cls(*pointers, arrays.num_keys.numel(), arrays.merge_rows.numel(), arrays.num_parts)
