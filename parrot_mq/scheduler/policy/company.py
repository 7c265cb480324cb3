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
    """One model's engines."""

    __slots__ = ("busy", "companies", "demand", "engines", "peak", "peak_at_ms", "urgent")

    def __init__(self) -> None:
        self.engines: dict[str, None] = {}
        self.urgent: dict[str, None] = {}
        """Those with urgent requests."""
        self.companies = Ranking()
        """Those of them that take one more within the tolerance, fullest first."""
        self.busy: dict[str, float] = {}
        """How busy throughput work keeps each of the others, 0 to 1."""
        self.demand = 0.0
        self.peak = 0.0
        self.peak_at_ms = 0.0


class Company:
    """Told of every change of an engine; each operation costs the logarithm of the number of engines, or less."""

    def __init__(self) -> None:
        self._sides: dict[str, _Side] = {}
        self._model_of: dict[str, str] = {}
        self._stay_ms = 0.0
        """How long an urgent request takes, in the mean: so far back a demand for engines is remembered."""

    def note(self, load: EngineLoad, now_ms: float) -> None:
        """An engine has changed."""
        if self._model_of.get(load.id, load.model) != load.model:
            self.forget(load.id)
        side = self._sides.get(load.model)
        if side is None:
            side = self._sides[load.model] = _Side()
        self._model_of[load.id] = load.model
        side.engines[load.id] = None
        if load.num_urgent:
            side.urgent[load.id] = None
            self._set_busy(side, load.id, 0.0, now_ms)
            if load.outlook.room > 0 and load.outlook.slowdown(1) <= TOLERANCE:
                side.companies.put(load.id, -load.outlook.slowdown())
            else:
                side.companies.discard(load.id)
        else:
            side.urgent.pop(load.id, None)
            side.companies.discard(load.id)
            self._set_busy(side, load.id, load.outlook.busy(now_ms), now_ms)

    def forget(self, engine_id: str) -> None:
        """An engine is gone."""
        model = self._model_of.pop(engine_id, None)
        if model is None:
            return
        side = self._sides[model]
        side.engines.pop(engine_id)
        side.urgent.pop(engine_id, None)
        side.companies.discard(engine_id)
        side.demand -= side.busy.pop(engine_id, 0.0)
        if not side.engines:
            del self._sides[model]

    def stays(self, duration_ms: float) -> None:
        """An urgent request was placed that is expected to take so long."""
        self._stay_ms += (NEW_WEIGHT if self._stay_ms else 1.0) * (duration_ms - self._stay_ms)

    def held(self, model: str, now_ms: float) -> None:
        """Throughput work waits for engines that urgent requests are on."""
        for name, side in self._sides.items():
            if not model or name == model:
                self._raise(side, float(len(side.engines)), now_ms)

    def companies(self, model: str, now_ms: float, kept: Collection[str]) -> list[str]:
        """Return engines, none of ``kept``, whose urgent requests one more should join, the fullest first; none where
        throughput work has engines enough.
        """
        side = self._sides.get(model) if model else next(iter(self._sides.values()), None)
        if side is None or not side.companies:
            return []
        wanted = math.ceil(max(side.demand, self._peak(side, now_ms)) - NEGLIGIBLE)
        if not wanted or len(side.engines) - len(side.urgent) > wanted:
            return []
        return [name for _, name in side.companies.first(NUM_COMPANIES + len(kept)) if name not in kept]

    def _set_busy(self, side: _Side, engine_id: str, busy: float, now_ms: float) -> None:
        side.demand += busy - side.busy.get(engine_id, 0.0)
        side.busy[engine_id] = busy
        self._raise(side, side.demand, now_ms)

    def _peak(self, side: _Side, now_ms: float) -> float:
        if not self._stay_ms:
            return side.peak
        return side.peak * math.exp(min(0.0, side.peak_at_ms - now_ms) / self._stay_ms)

    def _raise(self, side: _Side, demand: float, now_ms: float) -> None:
        peak = self._peak(side, now_ms)
        side.peak, side.peak_at_ms = max(peak, demand), now_ms
