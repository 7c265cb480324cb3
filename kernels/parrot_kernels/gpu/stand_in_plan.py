"""The plan that a step is captured with: it has no sequences of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.errors import KernelCaptureError
from parrot_kernels.gpu.sharing_cost import AttentionShape
from parrot_kernels.query_group import QueryGroup

if TYPE_CHECKING:
    from parrot_kernels.gpu.device_plan import DevicePlan


class StandInPlan(AttentionPlan):
    """Stands for the plans of a captured step's runs, of ``num_rows`` rows.

    What attends by it reads the device plan that ``device_plan(shape)`` gives, asked for once, and so whatever that
    holds when the step is replayed. Read as a plan of its own it is padding.
    """

    def __init__(self, num_rows: int, device_plan: Callable[[AttentionShape], DevicePlan]) -> None:
        super().__init__([], [], [], num_rows=num_rows)
        self.device_plan = device_plan

    @functools.cached_property
    def groups(self) -> list[QueryGroup]:
        """Raise ``KernelCaptureError``: torch would attend by this plan, again at every replay."""
        raise KernelCaptureError("the kernel does not take the attention of this step, and torch's cannot be captured")
