"""How a simulated engine spends time: a port."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Spends the time that a step costs."""

    def spend(self, duration_ms: float) -> None:
        """Return when ``duration_ms`` have passed."""


class RealClock:
    """Sleeps. ``speed`` 10 makes a simulated second last a tenth."""

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed

    def spend(self, duration_ms: float) -> None:
        """Sleep for ``duration_ms`` over ``speed``."""
        if duration_ms > 0:
            time.sleep(duration_ms / 1000 / self._speed)


class InstantClock:
    """Only adds up what steps would have cost: ``elapsed_ms``."""

    def __init__(self) -> None:
        self.elapsed_ms = 0.0

    def spend(self, duration_ms: float) -> None:
        """Count ``duration_ms`` and return at once."""
        self.elapsed_ms += duration_ms
