"""Kernels of the engine and their torch twins. Imports torch (and triton), nothing of ours."""

from parrot_kernels.merge import merge_attention
from parrot_kernels.paged_attention import paged_attention, store_kv
from parrot_kernels.ragged_batch import RaggedBatch

__all__ = ["RaggedBatch", "merge_attention", "paged_attention", "store_kv"]
