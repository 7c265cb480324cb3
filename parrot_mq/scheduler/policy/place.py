"""Where a request runs: of the engines that it should be compared on, the one where it is done first."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.fleet import MIN_SHARED_TOKENS
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.pacing import TOLERANCE

LOAD_BOUND = 1.25
"""Queued sharers of a prefix stay together while their predicted completion is within this factor of the best
elsewhere: what a prediction for one cannot see is that others wait for the engine that would compute the prefix again.
"""
COMPANY_BOUND = 1 + 2 * TOLERANCE
"""Urgent requests join others while their predicted completion is within this factor of the best elsewhere: half of the
difference is their own delay, half that of the others, each of them within the tolerance."""


class Reason(enum.StrEnum):
    """Why a request goes to an engine."""

    GROUP = "group"
    """Its task group is there."""
    SHARERS = "sharers"
    """A queued request with the same prefix was just placed there."""
    RESIDENT = "resident"
    """Its prefix is in the cache there, and that makes it done first there."""
    COMPANY = "company"
    """Other urgent requests are there, and throughput work wants the engines that are free of them."""
    COMPLETION = "completion"
    """It is predicted to be done first there."""
    FLIGHT = "flight"
    """An equal request runs there, whose output it gets."""


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


def best_placement(
    node: RequestNode,
    candidates: Iterable[EngineLoad],
    now_ms: float,
    *,
    beside: EngineLoad | None = None,
    companies: Sequence[EngineLoad] = (),
) -> Placement | None:
    """Place ``node`` on the candidate that admits it and is predicted to finish it first; None if none admits it.

    Uncached prefix tokens and the delay to urgent requests are in the prediction. So a request goes where its prefix
    is as long as waiting there is predicted to take less than computing the prefix elsewhere, and to a second engine
    from then on: nothing piles up on one. Ties go to the engine with the fewest outstanding requests, then by id.
    ``beside``: where a sharer of its prefix was just placed, which is good enough within ``LOAD_BOUND``. ``companies``:
    more candidates, with urgent requests that it had better join; the first within ``COMPANY_BOUND`` is good enough.
    """
    compared = [
        (ms, engine.num_outstanding, engine.id, engine)
        for engine in dict.fromkeys((*companies, *candidates))
        if (ms := engine.predict(node, now_ms)) is not None
    ]
    if not compared:
        return None
    best = min(compared)
    reason = Reason.COMPLETION
    if beside is not None:
        near = next((c for c in compared if c[3] is beside and c[0] <= LOAD_BOUND * best[0]), None)
        if near is not None:
            best, reason = near, Reason.SHARERS
    elif companies:
        near = next((c for c in compared if c[3] in companies and c[0] <= COMPANY_BOUND * best[0]), None)
        if near is not None:
            best, reason = near, Reason.COMPANY
    predicted_ms, _, _, engine = best
    if reason is Reason.COMPLETION and node.prefix and engine.cached_tokens(node, now_ms) >= MIN_SHARED_TOKENS:
        reason = Reason.RESIDENT
    considered = tuple((its_id, ms) for ms, _, its_id, _ in compared if its_id != engine.id)
    return Placement(node, engine, reason, predicted_ms, considered)
