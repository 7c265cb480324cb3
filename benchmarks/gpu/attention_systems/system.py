"""What the benchmark wants of a system."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from benchmarks.gpu.attention_case import AttentionCase


class Prepared(Protocol):
    """A system with a case planned."""

    def run(self, layer: int) -> Tensor:
        """Attend over the cache of a layer; return [requests, heads, head_dim]."""

    def plan(self) -> None:
        """Plan as when a request has come or gone."""

    def advance(self) -> None:
        """Plan as when every request has moved on by a token."""


class AttentionSystem(Protocol):
    """Somebody who computes attention."""

    @property
    def name(self) -> str: ...

    def missing(self, device: torch.device) -> str | None:
        """Return why it cannot run on ``device``, None if it can."""

    def prepare(self, case: AttentionCase) -> Prepared:
        """Plan ``case``; what is compiled may wait for the first run."""
