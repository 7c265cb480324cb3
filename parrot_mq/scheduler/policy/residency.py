"""Which engines hold which prefixes: what heartbeats list, and what was assigned to them lately."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from parrot_mq.scheduler.policy.prefix import Boundary

RECENT_MS = 30_000.0
"""A prefix that was assigned to an engine counts as resident there for this long, whatever its heartbeat lists."""
MAX_RECENT = 1024


class Holders:
    """The engines that may hold a prefix, by digest. An engine's ``Residency`` says whether it still does."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[str, str | OrderedDict[str, None]] = {}
        """Most prefixes have one holder, whose id then stands here as it is."""

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, digest: str) -> bool:
        return digest in self._of

    def any_of(self, prefix: Iterable[Boundary], engine_id: str) -> bool:
        """Whether an engine may hold any of ``prefix``. To ask this of several engines touches the same memory."""
        of = self._of
        for digest, _ in prefix:
            holders = of.get(digest)
            if holders is not None and (
                engine_id in holders if isinstance(holders, OrderedDict) else engine_id == holders
            ):
                return True
        return False

    def add(self, digest: str, engine_id: str) -> None:
        """Note a holder."""
        holders = self._of.setdefault(digest, engine_id)
        if isinstance(holders, OrderedDict):
            holders[engine_id] = None
        elif holders != engine_id:
            self._of[digest] = OrderedDict(((holders, None), (engine_id, None)))

    def discard(self, digest: str, engine_id: str) -> None:
        """Forget a holder."""
        holders = self._of.get(digest)
        if isinstance(holders, OrderedDict):
            holders.pop(engine_id, None)
            if not holders:
                del self._of[digest]
        elif holders == engine_id:
            del self._of[digest]

    def some(self, digest: str, limit: int) -> list[str]:
        """Return up to ``limit`` holders of a prefix; of more, the next few in turn.

        A few in turn are enough to keep the load of many holders even (the power of d choices, Mitzenmacher 2001).
        """
        holders = self._of.get(digest)
        if holders is None:
            return []
        if not isinstance(holders, OrderedDict):
            return [holders]
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

    __slots__ = ("_engine_id", "_holders", "_recent", "_reported", "_until_ms")

    def __init__(self, engine_id: str, holders: Holders) -> None:
        self._engine_id = engine_id
        self._holders = holders
        self._reported: frozenset[str] = frozenset()
        self._recent: OrderedDict[str, float] = OrderedDict()
        """Until when what was assigned counts, oldest first."""
        self._until_ms: dict[str, float] = {}
        """Until when each digest counts as held: both of the above in one."""

    def cached_tokens(self, prefix: Sequence[Boundary], now_ms: float) -> int:
        """Return how many tokens of ``prefix`` the engine holds: those up to the last boundary of which it does."""
        until_ms = self._until_ms
        for digest, num_tokens in reversed(prefix):
            if until_ms.get(digest, now_ms) > now_ms:
                return num_tokens
        return 0

    def may_hold(self, prefix: Sequence[Boundary]) -> bool:
        """Whether the engine may hold any of ``prefix``."""
        return self._holders.any_of(prefix, self._engine_id)

    def report(self, digests: Iterable[str]) -> None:
        """Take in what a heartbeat lists."""
        before, self._reported = self._reported, frozenset(digests)
        for digest in self._reported - before:
            self._hold(digest, math.inf)
        for digest in before - self._reported:
            self._forget(digest)

    def assign(self, prefix: Iterable[Boundary], now_ms: float) -> None:
        """Note that a request with ``prefix`` was given to the engine, or that it was told to prefill it."""
        recent, until_ms = self._recent, now_ms + RECENT_MS
        for digest, _ in prefix:
            if digest in recent:
                recent.move_to_end(digest)
            recent[digest] = until_ms
            if digest not in self._reported:
                self._hold(digest, until_ms)
        while recent and (len(recent) > MAX_RECENT or next(iter(recent.values())) <= now_ms):
            digest, _ = recent.popitem(last=False)
            self._forget(digest)

    def clear(self) -> None:
        """The engine is gone: it holds nothing."""
        for digest in self._until_ms:
            self._holders.discard(digest, self._engine_id)
        self._reported = frozenset()
        self._recent.clear()
        self._until_ms.clear()

    def _hold(self, digest: str, until_ms: float) -> None:
        if digest not in self._until_ms:
            self._holders.add(digest, self._engine_id)
        self._until_ms[digest] = until_ms

    def _forget(self, digest: str) -> None:
        if digest in self._reported:
            return
        until_ms = self._recent.get(digest)
        if until_ms is not None:
            self._until_ms[digest] = until_ms
        else:
            del self._until_ms[digest]
            self._holders.discard(digest, self._engine_id)
