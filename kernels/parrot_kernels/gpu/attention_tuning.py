"""The launches of attention that ``tuning`` measures, and the batches that it measures them on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_kernels.gpu.attention_bench import AttentionBench, Batch, tree_tables
from parrot_kernels.gpu.attention_launch import WIDE_ROWS, AttentionLaunch, problem_name
from parrot_kernels.gpu.problem import Problem
from parrot_kernels.gpu.sharing_cost import NARROW_ROWS, AttentionShape, SharingCost

HEADS, KV_HEADS = 32, 8
SEQUENCES, OWN_KEYS = 64, 2048
"""Sequences where nothing is shared, and the keys of each."""
SHARED_KEYS, SUFFIX_KEYS = 8192, 128
"""Keys of a prefix whose readers fill one wide tile, and of each reader behind it."""


def attention_problems(
    device: torch.device, head_dims: Sequence[int] = (64, 128), keys: Sequence[int] = (32, 64, 128)
) -> Iterator[Problem]:
    """Yield a problem for each head dimension and tile, in bfloat16: decoding alone, or behind a shared prefix."""
    launches = [AttentionLaunch(*each) for each in itertools.product(keys, (4, 8), (2, 3), (1, 2, 3))]
    for head_dim in head_dims:
        shape = AttentionShape(HEADS, KV_HEADS, head_dim)
        for wide in (NARROW_ROWS, *WIDE_ROWS):
            batch = _batch(shape, wide, device)
            yield Problem("attention", problem_name(shape, wide), [batch.run], launches)


def _batch(shape: AttentionShape, wide: int, device: torch.device) -> Batch:
    """Return the batch of a tile: sequences alone for a narrow one, as many as fill it behind a prefix for a wide."""
    if wide == NARROW_ROWS:
        widths, lengths = [SEQUENCES], [OWN_KEYS]
    else:
        widths, lengths = [1, wide // shape.fold], [SHARED_KEYS, SUFFIX_KEYS]
    num_keys = sum(width * length for width, length in zip(widths, lengths, strict=True))
    bench = AttentionBench(shape, num_keys // BLOCK_SIZE, device)
    return bench.batch(tree_tables(widths, lengths), SharingCost(share=True), wide=wide)
