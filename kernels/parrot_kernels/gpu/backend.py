"""The operations as Triton kernels; matrix products are cuBLAS's, by torch.

What the kernels do not take (float64, rows that do not fit a program, other head dimensions) goes to the torch twin.
"""

from __future__ import annotations

import functools
import logging
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from triton.errors import TritonError

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import check_gate_up, check_norm, check_rope
from parrot_kernels.errors import KernelBuildError, KernelCaptureError, KernelInputError
from parrot_kernels.gpu.calibration import calibrated_cost
from parrot_kernels.gpu.graph_capture import CalledAgain, CudaGraphs, GraphCapture
from parrot_kernels.gpu.graphed_step import GraphedStep
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.rms_norm import MAX_DIM, add_rms_norm, rms_norm
from parrot_kernels.gpu.rope_and_store import rope_and_store
from parrot_kernels.gpu.sampling import sample
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost, default_cost
from parrot_kernels.gpu.silu_mul import silu_mul
from parrot_kernels.gpu.step_plans import StepPlans
from parrot_kernels.linear import PackedLinear, check_input
from parrot_kernels.torch_backend import TorchBackend

if TYPE_CHECKING:
    from parrot_kernels.backend import CapturedStep, Step

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class GpuBackend(TorchBackend):
    """See ``parrot_kernels.backend.Backend`` for the contracts.

    Nothing here waits for the GPU. So ``rope_and_store`` leaves out a slot behind the cache instead of raising. On a
    CPU the kernels are interpreted (``TRITON_INTERPRET=1``), for tests. Raises ``KernelBuildError`` where Triton cannot
    compile or run a kernel on ``device``.
    """

    name = "triton"

    def __init__(self, device: torch.device | str) -> None:
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise KernelBuildError(
                "torch sees no GPU: its build or the driver is missing, or CUDA_VISIBLE_DEVICES hides it"
            )
        try:
            probe = silu_mul(torch.ones(1, 2, device=device))
            if device.type == "cuda":
                torch.cuda.synchronize(probe.device)
        except (TritonError, RuntimeError, ValueError, OSError, ImportError, subprocess.SubprocessError) as error:
            hint = " (TRITON_INTERPRET=1 has them interpreted)" if device.type == "cpu" else ""
            raise KernelBuildError(f"Triton cannot run kernels on {device}{hint}: {error}") from error

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm without a residual; [tokens, dim] and [tokens, heads, dim] may be strided."""
        if x.dtype not in DTYPES or x.shape[-1] > MAX_DIM:
            return super().rms_norm(x, weight, eps)
        dim = check_norm(x, weight)
        if not 2 <= x.ndim <= 3 or x.stride(-1) != 1:
            return rms_norm(x.reshape(-1, dim).contiguous(), weight, eps).view(x.shape)
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Norm of the sum; rows may be strided."""
        if x.dtype not in DTYPES or x.shape[-1] > MAX_DIM:
            return super().add_rms_norm(x, residual, weight, eps)
        dim = check_norm(x, weight, residual)
        if x.ndim != 2 or x.stride(1) != 1 or residual.stride(1) != 1:
            flat, other = (each.reshape(-1, dim).contiguous() for each in (x, residual))
            normed, total = add_rms_norm(flat, other, weight, eps)
            return normed.view(x.shape), total.view(x.shape)
        return add_rms_norm(x, residual, weight, eps)

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
        """Rotate and store; a slot behind the cache is left out."""
        if query.dtype not in DTYPES:
            return super().rope_and_store(
                query, key, value, cos, sin, slots, key_cache, value_cache, key_scale=key_scale, value_scale=value_scale
            )
        check_rope(query, key, value, cos, sin, slots, key_cache, value_cache)
        query, key, value, cos, sin = (
            each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value, cos, sin)
        )
        return rope_and_store(
            query, key, value, cos, sin, slots.contiguous(), key_cache, value_cache,
            key_scale=key_scale, value_scale=value_scale,
        )  # fmt: skip

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
        return paged_attention(
            query, key_cache, value_cache, plan,
            scale=scale, softcap=softcap, window=window, key_scale=key_scale, value_scale=value_scale,
        )  # fmt: skip

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Gate; rows of [tokens, 2 * width] may be strided."""
        if gate_up.dtype not in DTYPES:
            return super().silu_mul(gate_up)
        width = check_gate_up(gate_up)
        if gate_up.ndim != 2 or gate_up.stride(1) != 1:
            return silu_mul(gate_up.reshape(-1, 2 * width).contiguous()).view(*gate_up.shape[:-1], width)
        return silu_mul(gate_up)

    def linear(self, x: Tensor, packed: PackedLinear, dtype: torch.dtype | None = None) -> Tensor:
        """Multiply by cuBLAS, which gives the float32 sums of 16-bit inputs as they are."""
        dtype = check_input(x, packed, dtype)
        if dtype == x.dtype or not x.is_cuda or not x.numel():
            return super().linear(x, packed, dtype)
        out = torch.mm(x.reshape(-1, packed.in_features), packed.plain.t(), out_dtype=dtype)
        if packed.bias is not None:
            out += packed.bias
        return out.view(*x.shape[:-1], packed.out_features)

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
    ) -> Tensor:
        """Draw in one launch; all tokens equal to the last one in ``top_p`` are kept."""
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
        """Capture CUDA graphs, see ``GraphedStep``; where kernels are interpreted, what only calls the step again."""
        device, max_tokens = tokens[0].device, tokens[0].shape[0]
        if not buckets:
            return None
        if max(buckets) > max_tokens:
            raise KernelInputError(f"buckets of up to {max(buckets)} tokens, in buffers of {max_tokens}")
        graphs: GraphCapture = CalledAgain()
        cost_of: Callable[[AttentionShape], SharingCost] = default_cost
        if device.type == "cuda":
            graphs, cost_of = CudaGraphs(device), functools.partial(calibrated_cost, device=device)
        plans = StepPlans(max(buckets), max_context, device, cost_of)
        try:
            return GraphedStep(self, step, tokens, picked, buckets=buckets, plans=plans, graphs=graphs)
        except KernelCaptureError as error:
            logger.warning("the model's step runs eagerly, which is slower: %s", error)
            return None
