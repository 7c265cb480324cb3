"""A step's attention plan as the compiled kernel reads it, made by plan.cpp."""

from __future__ import annotations

import array
import ctypes
import itertools
import weakref

from parrot_kernels.attention_plan import (
    BLOCK_SIZE,
    MAX_SHARED_QUERY,
    MIN_SHARED_KEYS,
    SPLIT_KEYS,
    AttentionPlan,
)
from parrot_kernels.cpu.library import INT32, INT64, POINTER, Library

ARRAYS = (
    "first_key", "num_keys", "block_start", "blocks", "row_start", "rows", "parts", "positions", "merge_rows",
    "merge_start",
)  # fmt: skip


class Plan(ctypes.Structure):
    """``Plan`` of plan.h."""

    _fields_ = [*((name, POINTER) for name in ARRAYS), ("pieces", INT64), ("merges", INT64), ("num_parts", INT64)]


class _Sequences(ctypes.Structure):
    """``Sequences`` of plan.h."""

    _fields_ = [
        *((name, POINTER) for name in ("query_lens", "context_lens", "table_start", "tables")),
        *((name, INT64) for name in ("count", "rows")),
    ]


class _Cutting(ctypes.Structure):
    """``Cutting`` of plan.h."""

    _fields_ = [(name, INT32) for name in ("block", "min_shared_keys", "max_shared_query", "split_keys", "share")]


class NativePlan:
    """The pieces of an ``AttentionPlan``, as ``PlanArrays`` lays them out; kept with the plan as its ``native``."""

    def __init__(self, library: Library, plan: AttentionPlan) -> None:
        lens = array.array("i", plan.query_lens)
        contexts = array.array("i", plan.context_lens)
        starts = array.array("i", itertools.accumulate(map(len, plan.block_tables), initial=0))
        arrays = [values.buffer_info()[0] for values in (lens, contexts, starts, plan.flat_tables)]
        sequences = _Sequences(*arrays, len(lens), plan.num_tokens)
        cutting = _Cutting(BLOCK_SIZE, MIN_SHARED_KEYS, MAX_SHARED_QUERY, SPLIT_KEYS, plan.share)
        built = library.plan_new(ctypes.addressof(sequences), ctypes.addressof(cutting))
        weakref.finalize(self, library.plan_free, built)
        self.address: int = library.plan_get(built)
        """Of a ``Plan``."""

    @property
    def plan(self) -> Plan:
        """What is at the address."""
        return Plan.from_address(self.address)

    @classmethod
    def of(cls, library: Library, plan: AttentionPlan) -> NativePlan:
        """Return what was made of ``plan`` before, or make it."""
        if not isinstance(plan.native, NativePlan):
            plan.native = cls(library, plan)
        return plan.native
