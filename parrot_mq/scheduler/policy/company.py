"""Which engines urgent requests are kept together on, so that throughput work finds others free of them.

An engine that runs one urgent request is as good as lost to throughput work, which is paced there (see ``pacing``); a
second urgent request beside the first costs both of them little. So where there is throughput work, urgent requests go
where others are already, fullest engine first, until that would slow them down by ``TOLERANCE``. Engines that hold few
then run empty, and the boundary between the two kinds of work moves as both come and go. Where there is no throughput
work, or engines enough for it, urgent requests are spread.

How many engines throughput work wants is not set: it is what it has kept busy lately, and all of them while some of it
is held off.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from parrot_mq.messages import EngineState
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.pacing import TOLERANCE
from parrot_mq.scheduler.policy.ranking import Ranking

NUM_COMPANIES = 2
"""Engines with urgent requests that one more is compared on, the fullest first."""
NEGLIGIBLE = 0.05
"""An engine that throughput work keeps busy for less than this part is not missed."""
NEW_WEIGHT = 0.05
"""Of a duration in the mean of them."""


class _Side:
    """The engines of one model that take requests.

    ``urgent``: those with urgent requests. ``companies``: those of them that take one more within the tolerance, the
    fullest first. ``busy``: how busy throughput work keeps each of all, 0 to 1, where nothing is urgent; ``demand``
    is the sum.
    """

    __slots__ = ("_peak", "_peak_at_ms", "busy", "companies", "demand", "urgent")

    def __init__(self) -> None:
        self.urgent: dict[str, None] = {}
        self.companies = Ranking()
        self.busy: dict[str, float] = {}
        self.demand = 0.0
        self._peak = self._peak_at_ms = 0.0

    def set_busy(self, engine_id: str, busy: float, now_ms: float, memory_ms: float) -> None:
        before = self.busy[engine_id]
        if busy < before:
            self.wanted(self.demand, now_ms, memory_ms)
        self.busy[engine_id] = busy
        self.demand += busy - before

    def wanted(self, num_engines: float, now_ms: float, memory_ms: float) -> None:
        """Throughput work kept so many engines busy until now, or had use for them."""
        self._peak = max(num_engines, self.peak(now_ms, memory_ms))
        self._peak_at_ms = now_ms

    def peak(self, now_ms: float, memory_ms: float) -> float:
        """Return how many it had use for lately: the most at any time, which falls to a third each ``memory_ms``."""
        if not self._peak or not memory_ms:
            return 0.0
        return self._peak * math.exp(min(0.0, self._peak_at_ms - now_ms) / memory_ms)


class Company:
    """Told of every change of an engine; each operation costs the logarithm of the number of engines, or less."""

    def __init__(self) -> None:
        self._sides: dict[str, _Side] = {}
        self._model_of: dict[str, str] = {}
        self._stay_ms = 0.0
        """How long an urgent request takes, in the mean: so far back a demand for engines is remembered."""

    def note(self, load: EngineLoad, now_ms: float) -> None:
        """An engine has changed."""
        side = self._side_of(load)
        if side is None:
            return
        name, outlook = load.id, load.outlook
        if load.num_urgent:
            side.urgent[name] = None
            side.set_busy(name, 0.0, now_ms, self._stay_ms)
            if outlook.room > 0 and outlook.slowdown(1) <= TOLERANCE:
                side.companies.put(name, -outlook.slowdown())
                return
        else:
            side.urgent.pop(name, None)
            side.set_busy(name, outlook.busy(now_ms), now_ms, self._stay_ms)
        side.companies.discard(name)

    def _side_of(self, load: EngineLoad) -> _Side | None:
        """Return where an engine belongs; None if it takes nothing at all now."""
        record, before = load.record, self._model_of.get(load.id)
        if record is None or record.state is not EngineState.READY:
            self._forget(load.id)
            return None
        if before != record.model:
            self._forget(load.id)
            self._model_of[load.id] = record.model
            self._sides.setdefault(record.model, _Side()).busy[load.id] = 0.0
        return self._sides[record.model]

    def _forget(self, engine_id: str) -> None:
        model = self._model_of.pop(engine_id, None)
        if model is None:
            return
        side = self._sides[model]
        side.urgent.pop(engine_id, None)
        side.companies.discard(engine_id)
        side.demand -= side.busy.pop(engine_id)
        if not side.busy:
            del self._sides[model]

    def stays(self, duration_ms: float) -> None:
        """An urgent request was placed that is expected to take so long."""
        self._stay_ms += (NEW_WEIGHT if self._stay_ms else 1.0) * (duration_ms - self._stay_ms)

    def held(self, model: str, now_ms: float) -> None:
        """Throughput work waits for engines that urgent requests are on."""
        for name, side in self._sides.items():
            if not model or name == model:
                side.wanted(float(len(side.busy)), now_ms, self._stay_ms)

    def companies(self, model: str, now_ms: float, kept: Collection[str]) -> list[str]:
        """Return engines, none of ``kept``, whose urgent requests one more should join, the fullest first; none where
        throughput work has engines enough. A request that takes any model joins others only if one is served.
        """
        if not model and len(self._sides) == 1:
            model = next(iter(self._sides))
        side = self._sides.get(model)
        if side is None or not side.companies:
            return []
        wanted = math.ceil(max(side.demand, side.peak(now_ms, self._stay_ms)) - NEGLIGIBLE)
        if not wanted or len(side.busy) - len(side.urgent) > wanted:
            return []
        return [name for _, name in side.companies.first(NUM_COMPANIES + len(kept)) if name not in kept]
