"""Where a request runs: with its task group, with prefix sharers, where its prefix is, or where it is done first."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.load import EngineLoad

MIN_SHARED_TOKENS = 32
"""A shared beginning shorter than two blocks is not worth a detour."""
LOAD_BOUND = 1.25
"""Sharers follow a prefix while their predicted completion there is within this factor of the best elsewhere."""


class Reason(enum.StrEnum):
    """Why a request goes to an engine."""

    GROUP = "group"
    """Its task group is there."""
    SHARERS = "sharers"
    """A queued request with the same prefix was just placed there."""
    RESIDENT = "resident"
    """Its prefix is in the cache there, and that makes it done first there."""
    COMPLETION = "completion"
    """It is predicted to be done first there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """One decision: run ``request`` on ``engine``.

    ``predicted_ms`` is what was compared, for the chosen engine: the predicted time from now until the request is done
    there, plus the delay that it is to urgent requests there. ``considered`` has the same for the other engines that
    were looked at, by engine id.
    """

    request: RequestNode
    engine: EngineLoad
    reason: Reason
    predicted_ms: float = 0.0
    considered: tuple[tuple[str, float], ...] = ()


def best_engine(node: RequestNode, engines: Sequence[EngineLoad], now_ms: float) -> tuple[EngineLoad, Reason] | None:
    """Return the engine that admits ``node`` and is predicted to finish it first; None if none admits it.

    Uncached prefix tokens and the delay to urgent requests are in the prediction, so that a resident prefix wins where
    its worth exceeds the load. Ties go to the engine with the fewest outstanding requests, then by id.
    """
    admitting = [engine for engine in engines if engine.admits(node, now_ms)]
    if not admitting:
        return None
    if len(admitting) == 1:
        best = admitting[0]
    else:
        best = min(admitting, key=lambda e: (e.completion_ms(node, now_ms), e.num_outstanding, e.id))
    resident = best.cached_tokens(node, now_ms) >= MIN_SHARED_TOKENS
    return best, Reason.RESIDENT if resident else Reason.COMPLETION


def group_engine(members: Sequence[RequestNode], engines: Sequence[EngineLoad], now_ms: float) -> EngineLoad | None:
    """Return the engine for a task group, whose ready ``members`` stand in the queue; None if none admits the first.

    It is the one where earlier members went, while it has free slots; else one with slots for all of them; else the one
    with most slots (the rest is placed with the next). Among equals the predicted completion of the last member counts.
    """
    first, count = members[0], len(members)
    admitting = [engine for engine in engines if engine.admits(first, now_ms)]
    if not admitting:
        return None
    assert first.group is not None
    for engine in admitting:
        if engine.id == first.group.engine and engine.num_free_slots:
            return engine

    def order(engine: EngineLoad) -> tuple[int, float, int, str]:
        fits = min(engine.num_free_slots, count)
        return -fits, engine.completion_ms(first, now_ms, count=max(1, fits)), engine.num_outstanding, engine.id

    return min(admitting, key=order)


def follows(node: RequestNode, engine: EngineLoad, engines: Sequence[EngineLoad], now_ms: float) -> bool:
    """Whether ``node`` should join a sharer of its prefix on ``engine``: it is admitted, and the load is bounded."""
    if not engine.admits(node, now_ms):
        return False
    here_ms = engine.completion_ms(node, now_ms)
    return all(
        here_ms <= LOAD_BOUND * other.completion_ms(node, now_ms)
        for other in engines
        if other is not engine and other.admits(node, now_ms)
    )
