"""Batches of decoding sequences to measure the attention kernel with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList

ALONE = SharingCost(share=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is ready to run, again and again."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    plan: AttentionPlan
    work: WorkList

    def run(self) -> None:
        """Launch the kernel."""
        scale = self.query.shape[-1] ** -0.5
        paged_attention(self.query, self.key_cache, self.value_cache, self.plan, scale=scale)


class AttentionBench:
    """The bfloat16 cache of a layer, ``num_blocks`` of random keys and values."""

    def __init__(self, shape: AttentionShape, num_blocks: int, device: torch.device) -> None:
        self._shape, self._num_blocks, self._device = shape, num_blocks, device
        size = (num_blocks, shape.kv_heads, BLOCK_SIZE, shape.head_dim)
        # Not zeros: the power that products draw, and so the clock, depends on the numbers.
        self._key_cache, self._value_cache = (torch.randn(size, dtype=torch.bfloat16, device=device) for _ in range(2))

    def own_blocks(self, num_keys: int) -> list[range]:
        """Return the block tables of as many sequences of ``num_keys`` as there are blocks for."""
        each = num_keys // BLOCK_SIZE
        return [range(first, first + each) for first in range(0, self._num_blocks - each + 1, each)]

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
        shape, device = self._shape, self._device
        contexts = [len(table) * BLOCK_SIZE for table in tables]
        plan = AttentionPlan([1] * len(tables), contexts, tables, num_rows=max(1, len(tables)))
        tiling = Tiling(shape, wide or shape.narrow, num_sms(device), split_keys=split_keys)
        work = WorkList.of(plan, dataclasses.replace(tiling, processors=processors or tiling.processors), cost)
        on_device = DevicePlan(tiling, Capacity.of(work), device, cost=cost)
        on_device.load(plan, work)
        on_device.bind(plan)
        query = torch.randn(plan.num_tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=device)
        return Batch(query, self._key_cache, self._value_cache, plan, work)
