"""Batches of decoding sequences to measure the attention kernel with: by ``tuning``, ``calibration`` and benchmarks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.gpu.attention_launch import AttentionLaunch
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList

ALONE = SharingCost(share=False)


def tree_tables(widths: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Return the block tables of a tree's leaves, each a sequence whose keys are those of the nodes above it.

    Level i has ``widths[i]`` nodes of ``lengths[i]`` keys, which share the next level's nodes evenly. Blocks are
    numbered level by level. Raises ``KernelInputError`` for widths that do not divide, and nodes of no whole blocks.
    """
    if any(after % before for before, after in itertools.pairwise(widths)):
        raise KernelInputError(f"each of the widths {widths} must divide the next")
    if any(length % BLOCK_SIZE for length in lengths):
        raise KernelInputError(f"nodes of {lengths} keys are not whole blocks of {BLOCK_SIZE}")
    tables: list[list[int]] = [[] for _ in range(widths[-1])]
    first = 0
    for width, length in zip(widths, lengths, strict=True):
        count = length // BLOCK_SIZE
        for leaf, table in enumerate(tables):
            start = first + leaf * width // len(tables) * count
            table += range(start, start + count)
        first += width * count
    return tables


class Batch:
    """A batch that is ready to run, again and again, over the cache of any layer of its bench."""

    def __init__(self, bench: AttentionBench, plan: AttentionPlan, tiling: Tiling, cost: SharingCost) -> None:
        shape = tiling.shape
        self._bench, self._tiling, self._cost = bench, tiling, cost
        self.plan = plan
        self.query = torch.randn(
            plan.num_tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=bench.device
        )
        self.work = WorkList.of(plan, tiling, cost)
        self._placed: dict[AttentionLaunch | None, DevicePlan] = {}

    def run(self, launch: AttentionLaunch | None = None, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Launch the kernel, by default as it is stored for the device; return (out, lse)."""
        self._place(launch).bind(self.plan)
        keys, values = self._bench.keys[layer], self._bench.values[layer]
        return paged_attention(self.query, keys, values, self.plan, scale=self.query.shape[-1] ** -0.5)

    def _place(self, launch: AttentionLaunch | None) -> DevicePlan:
        if launch not in self._placed:
            # Launched on the processors that there are, however many it was cut for.
            tiling = dataclasses.replace(self._tiling, processors=num_sms(self._bench.device))
            placed = DevicePlan(tiling, Capacity.of(self.work), self._bench.device, cost=self._cost, launch=launch)
            placed.load(self.plan, self.work)
            self._placed[launch] = placed
        return self._placed[launch]


class AttentionBench:
    """A bfloat16 cache: ``keys`` and ``values`` are [num_layers, num_blocks, kv_heads, 16, head_dim], random."""

    def __init__(self, shape: AttentionShape, num_blocks: int, device: torch.device, *, num_layers: int = 1) -> None:
        self.shape, self.device = shape, device
        size = (num_layers, num_blocks, shape.kv_heads, BLOCK_SIZE, shape.head_dim)
        # Not zeros: the power that products draw, and so the clock, depends on the numbers.
        self.keys, self.values = (torch.randn(size, dtype=torch.bfloat16, device=device) for _ in range(2))

    def batch(
        self,
        tables: Sequence[Sequence[int]],
        cost: SharingCost = ALONE,
        *,
        wide: int | None = None,
        processors: int | None = None,
        split_keys: bool = True,
    ) -> Batch:
        """Return a batch of a new token for each of the block tables, which are full.

        It is cut as if there were so many ``processors``, and launched on those that there are.
        """
        contexts = [len(table) * BLOCK_SIZE for table in tables]
        plan = AttentionPlan([1] * len(tables), contexts, tables, num_rows=max(1, len(tables)))
        processors = processors or num_sms(self.device)
        tiling = Tiling(self.shape, wide or self.shape.narrow, processors, split_keys=split_keys)
        return Batch(self, plan, tiling, cost)
