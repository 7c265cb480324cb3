"""Root-mean-square norm, of a sum or of one tensor, in one pass: a row stays in registers between its two uses.

Bytes moved per row of dim: x read and the result written once; with a residual, that read and the sum written too.
Source: Zhang and Sennrich, Root mean square layer normalization (2019).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parrot_kernels.gpu.device import on_device_of
from parrot_kernels.gpu.interpreter import rounded
from parrot_kernels.gpu.launch import Launch, launch_for

MAX_DIM = 32768
"""A row must fit the registers of a program."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, launch: Launch | None = None) -> Tensor:
    """Return the norm of the rows of ``x``, contiguous: [rows, dim] or [tokens, heads, dim], all strides but the last
    free, so that the heads may be a slice of a fused projection. ``weight`` is [dim].
    """
    inner, inner_stride = (x.shape[1], x.stride(1)) if x.ndim == 3 else (1, 0)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, None, inner, inner_stride, eps, launch)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """Return (norm of the sum, sum) of ``x`` and ``residual`` [rows, dim], whose rows may be strided.

    The sum is rounded to the dtype before it is normed.
    """
    normed, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _launch(x, residual, weight, normed, total, 1, 0, eps, launch)
    return normed, total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    total: Tensor | None,
    inner: int,
    inner_stride: int,
    eps: float,
    launch: Launch | None,
) -> None:
    dim = x.shape[-1]
    rows = x.shape[0] * inner
    columns = triton.next_power_of_2(dim)
    launch = launch or launch_for(x.device, "rms_norm", columns)
    tile = max(1, launch.block // columns)
    with on_device_of(x):
        _rms_norm[triton.cdiv(rows, tile),](
            x, residual, weight, out, total, rows, dim, inner, x.stride(0), inner_stride,
            residual.stride(0) if residual is not None else 0, eps,
            HAS_RESIDUAL=residual is not None, ROWS=tile, COLUMNS=columns, num_warps=launch.num_warps,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])  # or it is compiled again for a row, and for multiples of 16
def _rms_norm(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    normed_ptr: tl.tensor,
    total_ptr: tl.tensor,
    rows: tl.tensor,
    dim: tl.tensor,
    inner: tl.tensor,
    outer_stride: tl.tensor,
    inner_stride: tl.tensor,
    residual_stride: tl.tensor,
    eps: tl.tensor,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Programs: tiles of ROWS rows, each a whole row of COLUMNS >= dim. Row r is x[r // inner, r % inner].

    How a row is summed depends on the tile alone, so that a row's result does not depend on how many there are.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows)[:, None] & (column < dim)
    start = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
    x = tl.load(x_ptr + start[:, None] + column, mask=mask, other=0.0).to(tl.float32)
    to = row.to(tl.int64)[:, None] * dim + column
    if HAS_RESIDUAL:
        residual_at = residual_ptr + row.to(tl.int64)[:, None] * residual_stride + column
        total = rounded(x + tl.load(residual_at, mask=mask, other=0.0).to(tl.float32), total_ptr.dtype.element_ty)
        tl.store(total_ptr + to, total, mask=mask)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / dim + eps)
    weight = tl.load(weight_ptr + column, mask=column < dim, other=0.0).to(tl.float32)
    tl.store(normed_ptr + to, rounded(x * scale[:, None] * weight, normed_ptr.dtype.element_ty), mask=mask)
