"""The launches of attention that ``tuning`` measures, and the batches that it measures them on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.gpu.attention_launch import WIDE_ROWS, AttentionLaunch, problem_name
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.problem import Problem
from parrot_kernels.gpu.sharing_cost import NARROW_ROWS, AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList

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
            run = _prepare(shape, wide, device)
            yield Problem("attention", problem_name(shape, wide), [run], launches)


def _prepare(shape: AttentionShape, wide: int, device: torch.device) -> Callable[[AttentionLaunch], object]:
    plan = _alone(SEQUENCES) if wide == NARROW_ROWS else _sharing(wide // shape.fold)
    tiling = Tiling(shape, wide, num_sms(device))
    work = WorkList.of(plan, tiling, SharingCost())
    size = (plan.num_blocks, shape.kv_heads, BLOCK_SIZE, shape.head_dim)
    keys, values = (torch.randn(size, device=device).to(torch.bfloat16) for _ in range(2))
    query = torch.randn(plan.num_tokens, shape.heads, shape.head_dim, device=device).to(torch.bfloat16)

    @functools.cache
    def placed(launch: AttentionLaunch) -> DevicePlan:
        device_plan = DevicePlan(tiling, Capacity.of(work), device, launch=launch)
        device_plan.load(plan, work)
        return device_plan

    def run(launch: AttentionLaunch) -> object:
        placed(launch).bind(plan)
        return paged_attention(query, keys, values, plan, scale=shape.head_dim**-0.5)

    return run


def _alone(sequences: int) -> AttentionPlan:
    per_sequence = OWN_KEYS // BLOCK_SIZE
    tables = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(sequences)]
    return AttentionPlan([1] * sequences, [OWN_KEYS] * sequences, tables)


def _sharing(sequences: int) -> AttentionPlan:
    prefix, own = SHARED_KEYS // BLOCK_SIZE, SUFFIX_KEYS // BLOCK_SIZE
    tables = [[*range(prefix), *range(prefix + i * own, prefix + (i + 1) * own)] for i in range(sequences)]
    return AttentionPlan([1] * sequences, [SHARED_KEYS + SUFFIX_KEYS] * sequences, tables)
