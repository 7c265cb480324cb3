"""What every benchmark is given: where to run, for how long, and whom to tell."""

from __future__ import annotations

import dataclasses
import sys
import time

import torch

from benchmarks.gpu.timing import Clock, clock_for

BUDGET_S = 420.0
"""A benchmark begins nothing new after so long, so that it ends within eight minutes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run on ``device``; a dry one is of toy size."""

    device: torch.device
    is_dry: bool
    rounds: int
    budget_s: float = BUDGET_S
    started_s: float = dataclasses.field(default_factory=time.monotonic)

    def new_clock(self) -> Clock:
        """Return a clock for what is measured together."""
        return clock_for(self.device)

    @property
    def used_s(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def is_over(self) -> bool:
        return self.used_s > self.budget_s

    def say(self, line: str) -> None:
        """Tell of progress."""
        print(f"[{self.used_s:5.0f} s] {line}", file=sys.stderr, flush=True)
