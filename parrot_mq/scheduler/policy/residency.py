"""Which engines hold which prefixes: what heartbeats list, and what was assigned to them lately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from parrot_mq.scheduler.policy.prefix import Boundary

RECENT_MS = 30_000.0
"""A prefix that was assigned to an engine counts as resident there for this long, whatever its heartbeat lists."""
MAX_RECENT = 1024


class Holders:
    """The engines that may hold a prefix, by digest. An engine's ``Residency`` says whether it still does."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def add(self, digest: str, engine_id: str) -> None:
        """Note a holder."""
        holders = self._of.get(digest)
        if holders is None:
            holders = self._of[digest] = OrderedDict()
        holders[engine_id] = None

    def discard(self, digest: str, engine_id: str) -> None:
        """Forget a holder."""
        holders = self._of.get(digest)
        if holders is not None and engine_id in holders:
            del holders[engine_id]
            if not holders:
                del self._of[digest]

    def some(self, digest: str, limit: int) -> list[str]:
        """Return up to ``limit`` holders of a prefix; of more, the next few in turn.

        A few in turn are enough to keep the load of many holders even (the power of d choices, Mitzenmacher 2001).
        """
        holders = self._of.get(digest)
        if holders is None:
            return []
        if len(holders) <= limit:
            return list(holders)
        found = []
        for _ in range(limit):
            engine_id = next(iter(holders))
            holders.move_to_end(engine_id)
            found.append(engine_id)
        return found


class Residency:
    """The prefixes that one engine holds, as far as the scheduler knows; ``holders`` is kept up to date with it."""

    __slots__ = ("_engine_id", "_holders", "_recent", "_reported")

    def __init__(self, engine_id: str, holders: Holders) -> None:
        self._engine_id = engine_id
        self._holders = holders
        self._reported: frozenset[str] = frozenset()
        self._recent: OrderedDict[str, float] = OrderedDict()

    def holds(self, digest: str, now_ms: float) -> bool:
        """Whether the prefix with this digest is in the engine's cache, or will be."""
        return digest in self._reported or self._recent.get(digest, -RECENT_MS) + RECENT_MS > now_ms

    def report(self, digests: Iterable[str]) -> None:
        """Take in what a heartbeat lists."""
        before, self._reported = self._reported, frozenset(digests)
        for digest in self._reported - before:
            self._holders.add(digest, self._engine_id)
        for digest in before - self._reported:
            self._forget(digest)

    def assign(self, prefix: Iterable[Boundary], now_ms: float) -> None:
        """Note that a request with ``prefix`` was given to the engine, or that it was told to prefill it."""
        recent, holders, engine_id = self._recent, self._holders, self._engine_id
        for digest, _ in prefix:
            if digest in recent:
                recent.move_to_end(digest)
            else:
                holders.add(digest, engine_id)
            recent[digest] = now_ms
        while recent and (len(recent) > MAX_RECENT or next(iter(recent.values())) + RECENT_MS <= now_ms):
            digest, _ = recent.popitem(last=False)
            self._forget(digest)

    def clear(self) -> None:
        """The engine is gone: it holds nothing."""
        for digest in self._reported | self._recent.keys():
            self._holders.discard(digest, self._engine_id)
        self._reported = frozenset()
        self._recent.clear()

    def _forget(self, digest: str) -> None:
        if digest not in self._reported and digest not in self._recent:
            self._holders.discard(digest, self._engine_id)
