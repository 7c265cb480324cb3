"""The compiled library: its functions, and the structures they take, as in the headers beside this file."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from parrot_kernels.errors import KernelBuildError

POINTER, INT64, INT32, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
SUFFIXES = {torch.float32: "_f32", torch.bfloat16: "_bf16"}
"""Of the functions that are compiled for a dtype."""


class Operation(ctypes.Structure):
    """An operation with its pointers, sizes and strides (in elements)."""


class RmsNorm(Operation):
    """``RmsNorm`` of rows.h."""

    _fields_ = [
        *[(name, POINTER) for name in ("x", "residual", "weight", "out", "total")],
        *[(name, INT64) for name in ("inner", "dim", "row_stride", "inner_stride", "residual_stride")],
        ("eps", FLOAT),
    ]


_ROPE_POINTERS = ("query", "key", "value", "cos", "sin", "slots", "out", "key_cache", "value_cache")
_ROPE_SIZES = (
    "query_stride", "key_stride", "value_stride", "angle_stride", "half", "heads", "kv_heads", "dim", "value_dim",
    "block_size", "num_slots",
)  # fmt: skip


class Rope(Operation):
    """``Rope`` of rows.h."""

    _fields_ = [*[(name, POINTER) for name in _ROPE_POINTERS], *[(name, INT64) for name in _ROPE_SIZES]]


class SiluMul(Operation):
    """``SiluMul`` of rows.h."""

    _fields_ = [("gate_up", POINTER), ("out", POINTER), ("columns", INT64), ("row_stride", INT64)]


class Gather(Operation):
    """``Gather`` of rows.h."""

    _fields_ = [
        *[(name, POINTER) for name in ("table", "index", "out")],
        *[(name, INT64) for name in ("table_rows", "row_stride_bytes", "row_bytes")],
    ]


_PACKED: list[tuple[str, type[ctypes.c_void_p] | type[ctypes.c_int64]]] = [
    ("data", POINTER),
    ("in_features", INT64),
    ("out_features", INT64),
    ("bias", POINTER),
]


class Linear(Operation):
    """``Linear`` of linear.h."""

    _fields_ = [("x", POINTER), ("out", POINTER), *_PACKED, ("x_stride", INT64), ("out_stride", INT64)]


class GatherPacked(Operation):
    """``GatherPacked`` of linear.h."""

    _fields_ = [*_PACKED, ("index", POINTER), ("out", POINTER)]


class Sampling(Operation):
    """``Sampling`` of sampling.h."""

    _fields_ = [
        *[(name, POINTER) for name in ("logits", "temperature", "top_p", "min_p", "top_k", "keys", "ids")],
        *[(name, INT64) for name in ("stride", "vocab")],
    ]


class Attention(Operation):
    """``Attention`` of attention.h."""

    _fields_ = [
        *[(name, POINTER) for name in ("query", "key_cache", "value_cache", "out", "lse")],
        *[(name, INT64) for name in ("heads", "kv_heads", "query_stride", "dim", "window")],
        *[(name, FLOAT) for name in ("scale", "softcap")],
    ]


class Library:
    """The library at ``path``. Raises ``KernelBuildError`` if it does not load."""

    def __init__(self, path: Path) -> None:
        address, int_ = ctypes.c_void_p, ctypes.c_int
        kinds = [
            f"{name}{suffix}"
            for name in ("rms_norm", "rope", "silu_mul", "linear", "gather_packed")
            for suffix in SUFFIXES.values()
        ]
        kinds += ["linear_bf16_f32", "gather", "sample"]
        attentions = ["attention_f32", "attention_bf16"]
        try:
            library = ctypes.CDLL(str(path))
            self.compute = {name: _bind(library, name, int_, address, INT64, int_) for name in kinds}
            """By name: f(operation, rows, threads), not 0 if an index lies outside what it indexes."""
            self.attend = {name: _bind(library, name, None, *[address] * 4, int_) for name in attentions}
            """By name: f(operation, plan, scratch for part outputs, for part log-sum-exps, threads)."""
            self.record = {
                name: _bind(library, f"record_{name}", None, address, address, INT32, INT32, int_)
                for name in kinds + attentions
            }
            """By name: f(program, operation, symbol of the rows, kind, barrier after)."""
            names = [f"packed_bytes{suffix}" for suffix in SUFFIXES.values()]
            self.packed_bytes = {name: _bind(library, name, INT64, INT64, INT64) for name in names}
            """By name: f(out_features, in_features)."""
            names = [f"pack{suffix}" for suffix in SUFFIXES.values()]
            self.pack = {name: _bind(library, name, None, address, *[INT64] * 3, address, int_) for name in names}
            """By name: f(weight, row stride, out_features, in_features, packed, threads)."""
            self.plan_new = _bind(library, "plan_new", address, address, address)
            self.plan_free = _bind(library, "plan_free", None, address)
            self.plan_get = _bind(library, "plan_get", address, address)
            self.program_new = _bind(library, "program_new", address)
            self.program_free = _bind(library, "program_free", None, address)
            self.program_run = _bind(library, "program_run", int_, address, INT64, INT64, address, int_)
            self.program_seconds = _bind(library, "program_seconds", ctypes.POINTER(ctypes.c_double), address)
        except (OSError, AttributeError) as error:
            raise KernelBuildError(f"the compiled operations do not load ({error}): delete {path}") from error


def _bind(library: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Any:
    function = getattr(library, f"parrot_{name}")
    function.restype, function.argtypes = restype, argtypes
    return function


OUTSIDE = {
    "rope": "a slot outside the cache",
    "gather": "an index outside the table",
    "gather_packed": "an index outside the weight",
}
"""What an operation means when it refuses its indices."""
