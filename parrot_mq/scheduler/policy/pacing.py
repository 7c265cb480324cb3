"""Throughput work beside urgent requests: how much of it, so that those hardly notice.

A request that joins an engine delays all that run there, by its prefill and by the longer steps that follow. For
throughput work beside urgent requests this delay is paced: in the long run it takes at most ``SHARE`` of the engine's
time, and at once no more than the same share of what the urgent ones are expected to take. So each urgent request is
slowed down by at most about ``TOLERANCE``, a tenth, by what was placed beside it, whatever the engine and the model
are; and throughput work beside urgent requests goes on at the same rate: it is put off, never starved.

Urgent requests that are together for the sake of throughput work (see ``company``) are slowed down by one another, too:
what they bear already is taken off their share, down to ``LEAST_SHARE``.
"""

from __future__ import annotations

SHARE = 0.05
"""The part of its time that an urgent request gives to throughput work placed beside it, and again as a burst."""
TOLERANCE = 2 * SHARE
"""By how much an urgent request may be slowed down for the sake of throughput work, in all."""
LEAST_SHARE = SHARE / 5
"""What it gives however crowded it is already: throughput work that finds no other engine is not starved."""


class Pacing:
    """A leaky bucket of delay: it fills with each throughput request and drains at its share of the time."""

    __slots__ = ("_drained_ms",)

    def __init__(self) -> None:
        self._drained_ms = 0.0

    def add(self, delay_ms: float, now_ms: float, slowdown: float = 0.0) -> None:
        """A throughput request that delays the urgent ones by ``delay_ms`` was placed beside them. ``slowdown``: what
        they bear already, for being together, as a part of the time they would have alone.
        """
        share = max(LEAST_SHARE, SHARE - slowdown / 2)
        self._drained_ms = max(now_ms, self._drained_ms) + delay_ms / share

    def opens_ms(self, burst_ms: float) -> float:
        """Return when more may be placed beside urgent requests that are expected to take ``burst_ms``."""
        return self._drained_ms - burst_ms

    def clear(self) -> None:
        """Nothing urgent is here any more."""
        self._drained_ms = 0.0
