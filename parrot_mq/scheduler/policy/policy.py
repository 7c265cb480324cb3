"""The decision: which ready requests start now, and where (Parrot, OSDI'24, algorithm 1). No I/O, no clock.

A request is only dispatched when it should start within about two decode steps; all others stay here, where a later
and more urgent one can still pass them.
"""

from __future__ import annotations

import dataclasses

import orjson

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.books import is_patient, is_throughput, is_urgent
from parrot_mq.scheduler.policy.fleet import MIN_SHARED_TOKENS, NUM_BEST, Fleet
from parrot_mq.scheduler.policy.groups import divide
from parrot_mq.scheduler.policy.order import Line, ReadyQueue
from parrot_mq.scheduler.policy.place import Placement, Reason, best_placement

MAX_PLACEMENTS = 256
"""Placements in one plan, so that none takes long; ``Plan.more`` says to decide again."""
MAX_JUMP_MS = 1_000.0
"""A prefix sharer overtakes only requests that are this much ahead of it: sharing must not starve anybody."""
MAX_PASSED = 2
"""Requests that no engine admits, in one decision, before all behind them have to wait as well."""
NUM_GROUP_BEST = 8
"""Engines that a task group is divided over at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to dispatch, in this order; ``more``: there may be more that could start now."""

    placements: tuple[Placement, ...]
    more: bool = False


def decide(ready: ReadyQueue, fleet: Fleet, now_ms: float) -> Plan:
    """Take requests off ``ready`` while an engine has room for the first of them; charge them to the engines.

    Deterministic in its arguments. The caller dispatches the plan and puts back what the store refuses.

    A request that no engine admits keeps the engine that has most room for it, and goes on keeping that one: those
    behind it go only to others. So it starts at the latest when what ran there is done, since an empty engine admits
    anything: a large request is not starved by small ones, and does not hold all engines up either (backfilling:
    Mu'alem and Feitelson, 2001). Throughput work that is held off for the sake of urgent requests holds back only its
    like.
    """
    round_ = _Round(ready, fleet, now_ms)
    try:
        more = round_.run()
    finally:
        ready.restore()
    return Plan(tuple(round_.placements), more)


class _Round:
    """One decision under way."""

    def __init__(self, ready: ReadyQueue, fleet: Fleet, now_ms: float) -> None:
        self.placements: list[Placement] = []
        self._ready = ready
        self._fleet = fleet
        self._now_ms = now_ms
        self._kept: dict[str, None] = {}
        """Engines kept for requests that were passed over, which none admits."""
        self._held: set[Line] = set()
        """Lines that wait for time to pass."""
        self._num_passed = 0

    def run(self) -> bool:
        """Place what can be placed; returns whether there may be more."""
        while len(self._ready) and self._num_passed < MAX_PASSED:
            models = self._fleet.open_models(self._now_ms, self._kept)
            node = self._ready.first(models, self._held) if models else None
            if node is None:
                return False
            if len(self.placements) >= MAX_PLACEMENTS:
                return True
            if node.group is not None:
                self._place_group(node)
            else:
                self._place_with_sharers(node)
        return False

    def _place_group(self, node: RequestNode) -> None:
        group = node.group
        assert group is not None
        limit = MAX_PLACEMENTS - len(self.placements)
        members = [node, *(m for m in self._ready.group_members(group, limit) if m is not node)][:limit]
        candidates = self._fleet.candidates(
            node, self._now_ms, self._kept, min(NUM_GROUP_BEST, NUM_BEST * len(members))
        )
        parts = divide(members, candidates, self._now_ms)
        if not parts:
            self._pass_over(node)
            return
        group.engine = parts[0].engine.id
        waiting = iter(members)
        for part in parts:
            considered = tuple((p.engine.id, p.predicted_ms) for p in parts if p is not part)
            for member in (next(waiting) for _ in range(part.count)):
                if not part.engine.admits(member, self._now_ms):
                    break  # it is larger than the first: it comes again
                self._place(Placement(member, part.engine, Reason.GROUP, part.predicted_ms, considered))

    def _place_with_sharers(self, node: RequestNode) -> None:
        companies = self._fleet.companies(node, self._now_ms, self._kept)
        candidates = self._fleet.candidates(node, self._now_ms, self._kept)
        found = best_placement(node, candidates, self._now_ms, companies=companies)
        if found is None:
            self._pass_over(node)
            return
        engine = found.engine
        sharers: list[RequestNode] = []
        limit = min(engine.room, MAX_PLACEMENTS - len(self.placements)) - 1
        if limit > 0 and len(self._ready) > 1 and node.prefix and node.prefix[-1][1] >= MIN_SHARED_TOKENS:
            sharers = self._ready.sharers(node, limit, MIN_SHARED_TOKENS)
        self._place(found)
        latest_ms = node.key_ms + MAX_JUMP_MS
        for sharer in sharers:
            if sharer.group is not None or sharer.key_ms > latest_ms:
                continue
            candidates = self._fleet.candidates(sharer, self._now_ms, self._kept)
            found = best_placement(sharer, candidates, self._now_ms, beside=engine)
            if found is None or found.engine is not engine:
                break
            self._place(found)

    def _place(self, placement: Placement) -> None:
        self._ready.take(placement.request)
        if is_urgent(placement.request):
            self._fleet.company.stays(placement.predicted_ms)
        placement.request.kept_engine = ""
        placement.engine.charge(placement.request, self._now_ms)
        self.placements.append(placement)

    def _pass_over(self, node: RequestNode) -> None:
        """No candidate admits ``node``: try the one with most room, or keep it for this one."""
        if is_throughput(node) and self._fleet.is_pacing(node.model, self._now_ms):
            if is_patient(node):
                self._fleet.company.held(node.model, self._now_ms)
            self._hold_throughput(node.model)
            return
        roomiest = self._fleet.roomiest(node.model, self._now_ms, self._kept)
        assert roomiest is not None, "its model is open"
        found = best_placement(node, (roomiest,), self._now_ms)
        if found is not None:
            self._place(found)
            return
        if not self._fleet.is_open(node.kept_engine, node.model, self._kept):
            node.kept_engine = roomiest.id
        self._kept[node.kept_engine] = None
        self._num_passed += 1
        self._ready.pass_over(node)

    def _hold_throughput(self, model: str) -> None:
        # Also what competes for the same engines, so that it keeps its place before that.
        models = (model, "") if model else self._fleet.open_models(self._now_ms)
        self._held.update((name, True) for name in models)


def plan_json(node: RequestNode, group_size: int = 0) -> str:
    """Return the hints that go with an assignment, defaults left out. ``group_size``: how many members of its task
    group go to the same engine with it, itself among them.
    """
    data: dict[str, object] = {"rank": round(node.key_ms)}
    if node.group is not None and group_size > 1:
        data["group"], data["group_size"] = node.group.id, group_size
    if node.objective is not None:
        data["objective"] = node.objective.kind.value
    if node.prefix:
        data["prefix"] = [digest for digest, _ in node.prefix]
    if node.flight is not None:
        data["flight"] = node.flight
    return orjson.dumps(data).decode()
