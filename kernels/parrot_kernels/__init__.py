"""Kernels of the engine and their torch twins. Imports torch (and triton), nothing of ours."""

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.backend import Backend, CapturedStep, backend_for
from parrot_kernels.errors import KernelBuildError, KernelCaptureError, KernelError, KernelInputError
from parrot_kernels.linear import PackedLinear
from parrot_kernels.merge import merge_attention
from parrot_kernels.paged_attention import paged_attention, store_kv
from parrot_kernels.ragged_batch import RaggedBatch

__all__ = [
    "AttentionPlan",
    "Backend",
    "CapturedStep",
    "KernelBuildError",
    "KernelCaptureError",
    "KernelError",
    "KernelInputError",
    "PackedLinear",
    "RaggedBatch",
    "backend_for",
    "merge_attention",
    "paged_attention",
    "store_kv",
]
