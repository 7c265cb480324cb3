"""Lanes: what may go to an engine without asking the scheduler first.

While nothing waits and a model has one engine with slots to spare, there is nothing to decide: any request of the model
goes there, at once. The scheduler then grants a *lane*, that is the engine and a number of requests. The script that
makes a request ready puts it into the engine's queue itself and says so in the intake: a job's hop takes one process
less, and a chain advances inside the store. As soon as there is a choice to make (several engines, a queue, promises
to keep, little memory left) lanes are taken back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from parrot_mq.messages import EngineState
from parrot_mq.scheduler.policy import EngineLoad
from parrot_mq.store.records import Lane


class Lanes:
    """The lanes of this term, as far as the intake has told of their use. ``most``: requests in a lane; 0 for none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._granted: dict[str, Lane] = {}

    def granted(self, lanes: Mapping[str, Lane]) -> None:
        """These lanes, by model, are what the store has now."""
        self._granted = dict(lanes)

    def used(self, model: str) -> None:
        """A request that asked for ``model`` went by its lane."""
        lane = self._granted.get(model)
        if lane is not None:
            self._granted[model] = dataclasses.replace(lane, credits=max(0, lane.credits - 1))

    def due(self, engines: Iterable[EngineLoad], *, idle: bool) -> dict[str, Lane] | None:
        """Return the lanes to grant from now on, by model ("" for requests that take any); None: they are as they
        should be. ``idle``: nothing waits for the scheduler.
        """
        wanted = self._wanted(engines) if idle else {}
        return None if self._suffice(wanted) else wanted

    def _wanted(self, engines: Iterable[EngineLoad]) -> dict[str, Lane]:
        serving: dict[str, list[EngineLoad]] = {}
        for load in engines:
            if load.record is not None and load.record.state is EngineState.READY:
                for model in (load.model, ""):
                    serving.setdefault(model, []).append(load)
        lanes = {}
        for model, loads in serving.items():
            most = min(self._most, loads[0].num_spare)
            if len(loads) == 1 and most > 0:
                lanes[model] = Lane(loads[0].id, most)
        return lanes

    def _suffice(self, wanted: Mapping[str, Lane]) -> bool:
        """Whether what is left of the granted lanes need not be changed: it is renewed when half of it is used."""
        granted = {model: lane for model, lane in self._granted.items() if lane.credits}
        return granted.keys() == wanted.keys() and all(
            granted[model].engine == lane.engine and lane.credits < 2 * granted[model].credits <= 2 * lane.credits
            for model, lane in wanted.items()
        )
