"""Kernels of the engine and their torch twins. Imports torch (and triton), nothing of ours."""

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.backend import Backend, CapturedStep, Step, backend_for
from parrot_kernels.errors import KernelBuildError, KernelCaptureError, KernelError, KernelInputError
from parrot_kernels.linear import PackedLinear

__all__ = [
    "BLOCK_SIZE",
    "AttentionPlan",
    "Backend",
    "CapturedStep",
    "KernelBuildError",
    "KernelCaptureError",
    "KernelError",
    "KernelInputError",
    "PackedLinear",
    "Step",
    "backend_for",
]
