"""The plans that captured steps attend by: one place for each kind of launch, which every step fills anew."""

from __future__ import annotations

from collections.abc import Callable

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.gpu.attention_launch import wide_rows
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.device_plan import SLACK_BLOCKS, Capacity, DevicePlan, wide_rows_for
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost, default_cost
from parrot_kernels.gpu.stand_in_plan import StandInPlan
from parrot_kernels.gpu.work_list import Tiling
from parrot_kernels.gpu.workspace import Workspace


class StepPlans:
    """Device plans for steps of up to ``max_rows`` rows, of sequences with up to ``max_context`` keys.

    How a launch is compiled depends on the rows of its wide tiles, and so a graph is captured for one size of them: a
    step is captured *narrow*, for plans whose pieces all fit the narrow tile (no shared prefix, say), which leaves room
    for more programs on a multiprocessor; and *wide*, for the others, with tiles of all rows that a bucket can put
    together. For each attention shape of the model and each size of tiles there is a device plan, made when a captured
    step first attends by it; ``cost_of`` says then what sharing costs. They have one workspace, as steps follow one
    another.
    """

    def __init__(
        self,
        max_rows: int,
        max_context: int,
        device: torch.device,
        cost_of: Callable[[AttentionShape], SharingCost] = default_cost,
    ) -> None:
        self._max_rows = max_rows
        self._max_blocks = max_rows * -(-max_context // BLOCK_SIZE)
        self._device = device
        self._cost_of = cost_of
        self._costs: dict[AttentionShape, SharingCost] = {}
        self._workspaces: dict[AttentionShape, Workspace] = {}
        self._plans: dict[tuple[AttentionShape, int], DevicePlan] = {}
        self._last: tuple[int, bool] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        spaces = sum(each.nbytes for each in self._workspaces.values())
        return spaces + sum(each.nbytes - each.workspace.nbytes for each in self._plans.values())

    def is_wide(self, num_rows: int) -> bool:
        """Return whether steps of ``num_rows`` can need wide tiles; known once one was computed with narrow ones."""
        return any(wide_rows(shape, num_rows * shape.fold) > shape.narrow for shape in self._workspaces)

    def stand_in(self, num_rows: int, *, wide: bool) -> AttentionPlan:
        """Return the plan to capture a step of ``num_rows`` with. Attending by it for the first time must not be part
        of what is captured: then its device plan is made, or filled with padding, which any number of rows needs.
        """

        def device_plan(shape: AttentionShape) -> DevicePlan:
            work = self._device_plan(shape, num_rows, wide)
            work.cut(padding)
            return work

        padding = AttentionPlan([], [], [], num_rows=num_rows)
        return StandInPlan(num_rows, device_plan)

    def update(self, plan: AttentionPlan) -> bool:
        """Let the steps of the plan's number of rows attend by ``plan``; return which of them: whether the wide one.

        Raises ``KernelInputError`` for a plan that is too large, or for other caches.
        """
        num_rows = plan.num_tokens
        if self._last is not None and self._last[0] == num_rows:
            wide = self._last[1]
            if all(work.advance(plan) for work in self._of(num_rows, wide)):
                return wide
        wide = any(wide_rows_for(plan, shape, cost) > shape.narrow for shape, cost in self._costs.items())
        self._last = None  # until all are filled
        for work in self._of(num_rows, wide):
            work.cut(plan)
        self._last = num_rows, wide
        return wide

    def _of(self, num_rows: int, wide: bool) -> list[DevicePlan]:
        return [self._device_plan(shape, num_rows, wide) for shape in self._workspaces]

    def _device_plan(self, shape: AttentionShape, num_rows: int, wide: bool) -> DevicePlan:
        rows = wide_rows(shape, num_rows * shape.fold) if wide else shape.narrow
        if (shape, rows) not in self._plans:
            tiling = Tiling(shape, rows, num_sms(self._device), slack=SLACK_BLOCKS)
            capacity = Capacity.for_batches(tiling, self._max_rows, self._max_blocks)
            if shape not in self._workspaces:
                self._costs[shape] = self._cost_of(shape)
                self._workspaces[shape] = Workspace.of(
                    shape, rows=capacity.rows, parts=capacity.parts, device=self._device
                )
            self._plans[shape, rows] = DevicePlan(
                tiling, capacity, self._device, cost=self._costs[shape], workspace=self._workspaces[shape]
            )
        return self._plans[shape, rows]
