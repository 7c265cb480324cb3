"""The clock of the packages that run in a simulation: the event loop's, instead of the machine's."""

from __future__ import annotations

import contextlib
import sys
import time as real_time
from collections.abc import Callable, Iterator
from typing import Any

from parrot_workers.simulation.errors import SimulationError

EPOCH_S = 1_750_000_000.0
"""The time of day at which every simulation begins."""
PACKAGES = frozenset({"fakeredis", "parrot_mq", "parrot_workers", "redis"})
OUTSIDE = "parrot_workers.simulation"
"""This package itself watches the real clock."""


class VirtualTime:
    """Stands for the module ``time`` in other modules. ``now_s`` returns the loop's time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.monotonic = self.perf_counter = now_s
        self._now_s = now_s

    def time(self) -> float:
        """Seconds since the epoch."""
        return EPOCH_S + self._now_s()

    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return round(self.time() * 1e9)

    def monotonic_ns(self) -> int:
        """Nanoseconds since the simulation began."""
        return round(self._now_s() * 1e9)

    def sleep(self, duration_s: float) -> None:
        """Raise ``SimulationError``: a blocking sleep would stop the world, and no time would pass."""
        raise SimulationError(f"somebody sleeps for {duration_s:g} s without asyncio, which no simulation can follow")

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


@contextlib.contextmanager
def installed(now_s: Callable[[], float]) -> Iterator[None]:
    """Have every module of ``PACKAGES`` that says ``time.something`` ask the loop, until the end.

    That is for the process, not for a thread: one simulation at a time, and nothing of these packages beside it. Raises
    ``SimulationError`` where one is under way.
    """
    clock = VirtualTime(now_s)
    changed = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in PACKAGES or name == OUTSIDE or name.startswith(f"{OUTSIDE}."):
            continue
        found = getattr(module, "time", None)
        if isinstance(found, VirtualTime):
            raise SimulationError("another simulation is under way in this process; run them one after the other")
        if found is real_time:
            changed.append(module)
    for module in changed:
        module.time = clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in changed:
            module.time = real_time  # type: ignore[attr-defined]
