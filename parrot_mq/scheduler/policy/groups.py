"""Where a task group runs. What counts is when the last of its members is done."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.load import EngineLoad

SPLIT_GAIN = 2.0
"""A group that fits on one engine is split only if that makes it done in this part of the time: split, it reads the
weights and its common prefix once for each part, which is time that others do not get."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """So many members of a group on one engine, the last of them done after ``predicted_ms``."""

    engine: EngineLoad
    count: int
    predicted_ms: float


def divide(members: Sequence[RequestNode], candidates: Sequence[EngineLoad], now_ms: float) -> list[Part]:
    """Divide the members of a task group that wait over engines; fewer are taken if there is no room for all.

    They stay together where the first of them went, or on the engine that is done with them first, if one has room for
    all. Else, or if that takes ``SPLIT_GAIN`` times as long, they are split so that the last is done as early as can
    be: each in turn goes where its part is done first (list scheduling, Graham 1966, with the time of a part
    predicted for all of it). Empty if no candidate admits the first member.
    """
    first, count = members[0], len(members)
    alone = {engine: ms for engine in candidates if (ms := engine.predict(first, now_ms)) is not None}
    # Dispatching ahead to a full engine makes no sense where another could start it at once.
    engines = [engine for engine in alone if engine.num_free_slots] or list(alone)
    if not engines:
        return []
    shared = min(_shared_tokens(members), first.prompt_tokens)

    def part(engine: EngineLoad, size: int) -> Part:
        if size == 1:
            return Part(engine, size, alone[engine])
        return Part(engine, size, engine.completion_ms(first, now_ms, count=size, shared_tokens=shared))

    rooms = {engine.id: _fitting(engine, first, shared, now_ms) for engine in engines}
    whole = [part(engine, count) for engine in engines if rooms[engine.id] >= count]
    together = min(whole, key=_order) if whole else None
    if first.group is not None and (home := next((p for p in whole if p.engine.id == first.group.engine), None)):
        together = home
    if together is not None and len(engines) == 1:
        return [together]
    heap = [(p.predicted_ms, p.engine.num_outstanding, p.engine.id, p) for p in (part(e, 1) for e in engines)]
    heapq.heapify(heap)
    parts: dict[str, Part] = {}
    for _ in range(count):
        if not heap:
            break
        grown = heapq.heappop(heap)[3]
        engine = grown.engine
        parts[engine.id] = grown
        if grown.count < rooms[engine.id]:
            larger = part(engine, grown.count + 1)
            heapq.heappush(heap, (larger.predicted_ms, engine.num_outstanding, engine.id, larger))
    if together is not None and together.predicted_ms <= SPLIT_GAIN * max(p.predicted_ms for p in parts.values()):
        return [together]
    return sorted(parts.values(), key=lambda p: (-p.count, _order(p)))


def _order(part: Part) -> tuple[float, int, str]:
    return part.predicted_ms, part.engine.num_outstanding, part.engine.id


def _fitting(engine: EngineLoad, node: RequestNode, shared: int, now_ms: float) -> int:
    """Return how many requests like ``node`` the engine would admit now, one of which it does."""
    room = engine.num_free_slots or engine.room
    cached = max(shared, engine.cached_tokens(node, now_ms))
    need = max(1, node.prompt_tokens - cached + node.reserved_tokens)
    headroom = engine.capacity_tokens if not engine.num_outstanding else engine.headroom
    return max(1, min(room, int(min(headroom / need, room))))


def _shared_tokens(members: Sequence[RequestNode]) -> int:
    """Return how many tokens the prompts of all members begin with alike, judged by the first and the last."""
    shared = 0
    for (digest, num_tokens), (other, _) in zip(members[0].prefix, members[-1].prefix, strict=False):
        if digest != other:
            break
        shared = num_tokens
    return shared
