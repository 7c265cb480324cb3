"""The decision: which ready requests start now, and where (Parrot, OSDI'24, algorithm 1). No I/O, no clock.

A request is only dispatched when it should start within about two decode steps; all others stay here, where a later
and more urgent one can still pass them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import orjson

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.order import ReadyQueue
from parrot_mq.scheduler.policy.place import (
    MIN_SHARED_TOKENS,
    Placement,
    Reason,
    best_engine,
    follows,
    group_engine,
)

MAX_PLACEMENTS = 256
"""Placements in one plan, so that none takes long; ``Plan.more`` says to decide again."""
MAX_JUMP_MS = 1_000.0
"""A prefix sharer overtakes only requests that are this much ahead of it: sharing must not starve anybody."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to dispatch, in this order; ``more``: there may be more that could start now."""

    placements: tuple[Placement, ...]
    more: bool = False


def decide(ready: ReadyQueue, engines: Iterable[EngineLoad], now_ms: float) -> Plan:
    """Take requests off ``ready`` while an engine has room for the first of them; charge them to the engines.

    Deterministic in its arguments. The caller dispatches the plan and puts back what the store refuses. A request that
    no engine admits holds back those behind it for the same model, so that a large one is not starved by small ones.
    """
    round_ = _Round(ready, [engine for engine in engines if engine.room > 0], now_ms)
    while round_.open and len(round_.placements) < MAX_PLACEMENTS:
        node = ready.first(round_.models)
        if node is None:
            return Plan(tuple(round_.placements))
        if node.group is not None:
            round_.place_group(node)
        else:
            round_.place_with_sharers(node)
    return Plan(tuple(round_.placements), more=bool(round_.open))


class _Round:
    """One decision under way."""

    def __init__(self, ready: ReadyQueue, engines: list[EngineLoad], now_ms: float) -> None:
        self.placements: list[Placement] = []
        self.open = engines
        self._ready = ready
        self._now_ms = now_ms
        self._blocked: set[str] = set()
        self.models: set[str] = set()
        self._set_models()

    def place_group(self, node: RequestNode) -> None:
        group = node.group
        assert group is not None
        limit = min(MAX_PLACEMENTS - len(self.placements), max(engine.room for engine in self.open))
        members = [node, *(m for m in self._ready.group_members(group, limit) if m is not node)][:limit]
        engine = group_engine(members, self.open, self._now_ms)
        if engine is None:
            self._block(node)
            return
        group.engine = engine.id
        for member in members:
            if not engine.admits(member, self._now_ms) or self._would_only_queue(member, engine):
                break
            self._place(member, engine, Reason.GROUP)
        self._close(engine)

    def _would_only_queue(self, node: RequestNode, engine: EngineLoad) -> bool:
        # Dispatching ahead to a full engine makes no sense while another one could start it at once.
        return not engine.num_free_slots and any(
            other.num_free_slots and other.admits(node, self._now_ms) for other in self.open
        )

    def place_with_sharers(self, node: RequestNode) -> None:
        found = best_engine(node, self.open, self._now_ms)
        if found is None:
            self._block(node)
            return
        engine, reason = found
        latest_ms = node.key_ms + MAX_JUMP_MS
        sharers: list[RequestNode] = []
        limit = min(engine.room, MAX_PLACEMENTS - len(self.placements)) - 1
        if limit > 0 and len(self._ready) > 1 and node.prefix and node.prefix[-1][1] >= MIN_SHARED_TOKENS:
            sharers = self._ready.sharers(node, limit, MIN_SHARED_TOKENS)
        self._place(node, engine, reason)
        for sharer in sharers:
            if sharer.group is not None or sharer.key_ms > latest_ms:
                continue
            if not follows(sharer, engine, self.open, self._now_ms):
                break
            self._place(sharer, engine, Reason.SHARERS)
        self._close(engine)

    def _place(self, node: RequestNode, engine: EngineLoad, reason: Reason) -> None:
        self._ready.take(node)
        engine.charge(node, self._now_ms)
        self.placements.append(Placement(node, engine, reason))

    def _block(self, node: RequestNode) -> None:
        self._blocked.add(node.model)
        self._set_models()
        if not self.models:
            self.open = []

    def _close(self, engine: EngineLoad) -> None:
        if engine.room <= 0:
            self.open = [other for other in self.open if other is not engine]
            self._set_models()

    def _set_models(self) -> None:
        self.models = ({engine.model for engine in self.open} | {""} if self.open else set()) - self._blocked


def plan_json(node: RequestNode) -> str:
    """Return the hints that go with an assignment, defaults left out."""
    data: dict[str, object] = {"rank": round(node.key_ms)}
    if node.group is not None:
        data["group"] = node.group.id
    if node.objective is not None:
        data["objective"] = node.objective.kind.value
    if node.prefix:
        data["prefix"] = [digest for digest, _ in node.prefix]
    if node.flight is not None:
        data["flight"] = node.flight
    return orjson.dumps(data).decode()
