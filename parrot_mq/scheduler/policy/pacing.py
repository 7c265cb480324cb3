"""Throughput work beside urgent requests: how much of it, so that those hardly notice.

A request that joins an engine delays all that run there, by its prefill and by the longer steps that follow. For
throughput work beside urgent requests this delay is paced: in the long run it takes at most ``SHARE`` of the engine's
time, and at once no more than the same share of what the urgent ones are expected to take. So each urgent request is
slowed down by at most about twice ``SHARE``, a tenth, by what was placed beside it, whatever the engine and the model
are; and throughput work beside urgent requests goes on at the same rate: it is put off, never starved.
"""

from __future__ import annotations

SHARE = 0.05
"""The part of its time that an urgent request gives to throughput work placed beside it, and again as a burst."""


class Pacing:
    """A leaky bucket of delay: it fills with each throughput request and drains at ``SHARE``."""

    __slots__ = ("_drained_ms",)

    def __init__(self) -> None:
        self._drained_ms = 0.0

    def add(self, delay_ms: float, now_ms: float) -> None:
        """A throughput request that delays the urgent ones by ``delay_ms`` was placed beside them."""
        self._drained_ms = max(now_ms, self._drained_ms) + delay_ms / SHARE

    def opens_ms(self, burst_ms: float) -> float:
        """Return when more may be placed beside urgent requests that are expected to take ``burst_ms``."""
        return self._drained_ms - burst_ms

    def clear(self) -> None:
        """Nothing urgent is here any more."""
        self._drained_ms = 0.0
