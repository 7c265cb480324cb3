"""A kernel to be tuned, at one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """Which of ``candidates`` is best for ``kernel`` at ``size``? Launches are dataclasses, of the kernel's own kind.

    Each of ``runs`` runs the kernel with a launch, on inputs of its own; all count the same.
    """

    kernel: str
    size: str
    runs: Sequence[Callable[[Any], object]]
    candidates: Sequence[Any]
