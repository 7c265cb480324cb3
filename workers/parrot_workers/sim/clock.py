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


class StepClock:
    """Keeps what a step costs until somebody takes it, who then lets that time pass."""

    def __init__(self) -> None:
        self._due_ms = 0.0

    def spend(self, duration_ms: float) -> None:
        """Note ``duration_ms`` and return at once."""
        self._due_ms += duration_ms

    def take_ms(self) -> float:
        """Return what was noted since the last call."""
        due_ms, self._due_ms = self._due_ms, 0.0
        return due_ms
