"""Our kernel: one launch, by a work list that is cut when requests come and go."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from benchmarks.gpu.attention_case import AttentionCase
from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.work_list import WorkList


@dataclasses.dataclass(frozen=True, slots=True)
class OurKernel:
    """With ``share`` false, plain paged decode: every request reads its keys by itself, balanced as well as may be."""

    name: str
    share: bool

    def missing(self, device: torch.device) -> str | None:
        return None

    def prepare(self, case: AttentionCase) -> OurAttention:
        return OurAttention(case, self.share)


class OurAttention:
    """See ``Prepared``. Plans are made on a device plan of their own, so that they do not change what is run."""

    def __init__(self, case: AttentionCase, share: bool) -> None:
        self._case = case
        self._cost = dataclasses.replace(case.cost, share=share and case.cost.share)
        self._tables = [case.tables, case.tables[::-1]]
        self._plan = self._made(0, case.tree.context)
        device_plan = DevicePlan.of(self._plan, case.shape, case.device, self._cost)
        orders = [WorkList.of(self._made(order, case.tree.context), device_plan.tiling, self._cost) for order in (0, 1)]
        needs = [dataclasses.astuple(Capacity.of(work)) for work in orders]
        room = Capacity(*map(max, zip(*needs, strict=True)))
        self._planned = DevicePlan(device_plan.tiling, room, case.device, cost=self._cost)
        self._planned.update(self._plan)
        self._turn = 0

    def run(self, layer: int) -> Tensor:
        case = self._case
        return paged_attention(
            case.query, case.keys[layer], case.values[layer], self._plan, scale=case.scale, cost=self._cost
        )[0]

    def plan(self) -> None:
        """Cut the plan of the same requests in the other order."""
        self._turn += 1
        self._planned.update(self._made(self._turn % 2, self._case.tree.context))

    def advance(self) -> None:
        """Move between the last key but one and the last."""
        self._turn += 2
        self._planned.update(self._made(self._turn % 2, self._case.tree.context - self._turn // 2 % 2))

    def _made(self, order: int, context: int) -> AttentionPlan:
        tables = self._tables[order]
        return AttentionPlan([1] * len(tables), [context] * len(tables), tables)
