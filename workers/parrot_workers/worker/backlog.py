"""Assignments that were received and are not claimed yet."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Container

from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Assignment
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.run import sequence_id


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """An assignment in memory; ``received_s`` is monotonic time."""

    store: EngineStore
    assignment: Assignment
    plan: Plan
    received_s: float

    @property
    def id(self) -> str:
        """The id of the attempt inside the engine."""
        return sequence_id(self.assignment.request, self.assignment.fence)

    @property
    def pair(self) -> tuple[str, str]:
        """Request and fence."""
        return self.assignment.request, self.assignment.fence


class Backlog:
    """A queue by rank, then by arrival. An assignment that is in it already is not taken twice."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []
        self._ids: set[str] = set()
        self._flights: dict[str, str] = {}
        """Digests of flights, by attempt, of those that have one."""
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._ids

    @property
    def num_in_flights(self) -> int:
        """Assignments that may be equal to others."""
        return len(self._flights)

    def push(self, waiting: Waiting) -> None:
        """Add an assignment."""
        if waiting.id not in self._ids:
            self._ids.add(waiting.id)
            if waiting.plan.flight:
                self._flights[waiting.id] = waiting.plan.flight
            heapq.heappush(self._heap, (waiting.plan.rank, next(self._arrivals), waiting))

    def pop(self, count: int) -> list[Waiting]:
        """Take up to ``count`` assignments, lowest rank first."""
        taken: list[Waiting] = []
        while self._heap and len(taken) < count:
            waiting = heapq.heappop(self._heap)[2]
            if waiting.id in self._ids:
                self.discard(waiting.id)
                taken.append(waiting)
        return taken

    def pop_flights(self, flights: Container[str | None], count: int) -> list[Waiting]:
        """Take up to ``count`` assignments of these flights, lowest rank first."""
        wanted = {attempt for attempt, flight in self._flights.items() if flight in flights}
        taken: list[Waiting] = []
        if wanted:
            for _, _, waiting in sorted(self._heap):
                if len(taken) < count and waiting.id in wanted:
                    self.discard(waiting.id)
                    taken.append(waiting)
        return taken

    def discard(self, attempt: str) -> None:
        """Forget an attempt that was cancelled; unknown ones are ignored."""
        self._ids.discard(attempt)
        self._flights.pop(attempt, None)

    def clear(self) -> list[Waiting]:
        """Take everything."""
        return self.pop(len(self._heap))
