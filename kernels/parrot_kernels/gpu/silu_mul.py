"""SiLU gate times up, in one pass.

Bytes moved per row: 2 * width read, width written, nothing else; torch alone moves about three times as many.
Source: Shazeer, GLU variants improve transformer (2020).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parrot_kernels.gpu.device import on_device_of
from parrot_kernels.gpu.interpreter import rounded
from parrot_kernels.gpu.launch import Launch, launch_for


def silu_mul(gate_up: Tensor, launch: Launch | None = None) -> Tensor:
    """Return silu(gate) * up [rows, width] of ``gate_up`` [rows, 2 * width], whose rows may be strided."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    launch = launch or launch_for(gate_up.device, "silu_mul", width)
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    with on_device_of(gate_up):
        _silu_mul[rows, triton.cdiv(width, launch.block)](
            gate_up, out, width, gate_up.stride(0), BLOCK=launch.block, num_warps=launch.num_warps
        )
    return out


@triton.jit
def _silu_mul(
    gate_up_ptr: tl.tensor, out_ptr: tl.tensor, width: tl.tensor, stride: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Programs: rows x blocks of columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    at = gate_up_ptr + row * stride + column
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=mask, other=0.0).to(tl.float32)
    # exp of a negative number, so that nothing overflows.
    decay = tl.exp(-tl.abs(gate))
    gated = gate * tl.where(gate >= 0, 1.0, decay) / (1.0 + decay) * up
    tl.store(out_ptr + row * width + column, rounded(gated, out_ptr.dtype.element_ty), mask=mask)
