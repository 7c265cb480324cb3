"""Where a request runs: of the engines that it should be compared on, the one where it is done first."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.fleet import MIN_SHARED_TOKENS
from parrot_mq.scheduler.policy.load import EngineLoad


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


def best_placement(node: RequestNode, candidates: Iterable[EngineLoad], now_ms: float) -> Placement | None:
    """Place ``node`` on the candidate that admits it and is predicted to finish it first; None if none admits it.

    Uncached prefix tokens and the delay to urgent requests are in the prediction. So a request goes where its prefix
    is as long as waiting there is predicted to take less than computing the prefix elsewhere, and to a second engine
    from then on: nothing piles up on one. Ties go to the engine with the fewest outstanding requests, then by id.
    """
    compared = [
        (engine.completion_ms(node, now_ms), engine.num_outstanding, engine.id, engine)
        for engine in candidates
        if engine.admits(node, now_ms)
    ]
    if not compared:
        return None
    best = min(compared)
    predicted_ms, _, _, engine = best
    resident = bool(node.prefix) and engine.cached_tokens(node, now_ms) >= MIN_SHARED_TOKENS
    considered = tuple((its_id, ms) for ms, _, its_id, _ in compared if its_id != engine.id)
    reason = Reason.RESIDENT if resident else Reason.COMPLETION
    return Placement(node, engine, reason, predicted_ms, considered)
