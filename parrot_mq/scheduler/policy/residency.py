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
    """The engines that hold a prefix, by digest, and until when (milliseconds on the clock of decisions) each does.

    One dict for all engines: to ask about one prefix on several engines touches the same memory.
    """

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, float] | OrderedDict[str, float]] = {}
        """Most prefixes have one holder, which then stands here as it is."""

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, digest: str) -> bool:
        return digest in self._of

    def cached_tokens(self, prefix: Sequence[Boundary], engine_id: str, now_ms: float) -> int:
        """Return how many tokens of ``prefix`` an engine holds: those up to the last boundary of which it does."""
        of = self._of
        for digest, num_tokens in reversed(prefix):
            holders = of.get(digest)
            if holders is None:
                continue
            if isinstance(holders, tuple):
                if holders[0] == engine_id and holders[1] > now_ms:
                    return num_tokens
            elif holders.get(engine_id, now_ms) > now_ms:
                return num_tokens
        return 0

    def hold(self, digest: str, engine_id: str, until_ms: float) -> None:
        """Note a holder, or until when it is one."""
        of = self._of
        holders = of.get(digest)
        if holders is None:
            of[digest] = engine_id, until_ms
        elif not isinstance(holders, tuple):
            holders[engine_id] = until_ms
        elif holders[0] == engine_id:
            of[digest] = engine_id, until_ms
        else:
            of[digest] = OrderedDict((holders, (engine_id, until_ms)))

    def discard(self, digest: str, engine_id: str) -> None:
        """Forget a holder."""
        holders = self._of.get(digest)
        if isinstance(holders, OrderedDict):
            holders.pop(engine_id, None)
            if not holders:
                del self._of[digest]
        elif holders is not None and holders[0] == engine_id:
            del self._of[digest]

    def some(self, digest: str, limit: int) -> list[str]:
        """Return up to ``limit`` holders of a prefix; of more, the next few in turn.

        A few in turn are enough to keep the load of many holders even (the power of d choices, Mitzenmacher 2001).
        """
        holders = self._of.get(digest)
        if holders is None:
            return []
        if isinstance(holders, tuple):
            return [holders[0]]
        if len(holders) <= limit:
            return list(holders)
        found = []
        for _ in range(limit):
            engine_id = next(iter(holders))
            holders.move_to_end(engine_id)
            found.append(engine_id)
        return found


class Residency:
    """The prefixes that one engine holds, as far as the scheduler knows: it keeps ``holders`` up to date."""

    __slots__ = ("_engine_id", "_holders", "_recent", "_reported")

    def __init__(self, engine_id: str, holders: Holders) -> None:
        self._engine_id = engine_id
        self._holders = holders
        self._reported: frozenset[str] = frozenset()
        """What it lists counts as held for as long as it does."""
        self._recent: OrderedDict[str, float] = OrderedDict()
        """Until when what was assigned counts, oldest first."""

    def cached_tokens(self, prefix: Sequence[Boundary], now_ms: float) -> int:
        """Return how many tokens of ``prefix`` the engine holds: those up to the last boundary of which it does."""
        return self._holders.cached_tokens(prefix, self._engine_id, now_ms)

    def report(self, digests: Iterable[str]) -> None:
        """Take in what a heartbeat lists."""
        before, self._reported = self._reported, frozenset(digests)
        for digest in self._reported - before:
            self._holders.hold(digest, self._engine_id, math.inf)
        for digest in before - self._reported:
            until_ms = self._recent.get(digest)
            if until_ms is None:
                self._holders.discard(digest, self._engine_id)
            else:
                self._holders.hold(digest, self._engine_id, until_ms)

    def assign(self, prefix: Iterable[Boundary], now_ms: float) -> None:
        """Note that a request with ``prefix`` was given to the engine, or that it was told to prefill it."""
        recent, reported, engine_id, until_ms = self._recent, self._reported, self._engine_id, now_ms + RECENT_MS
        for digest, _ in prefix:
            if digest in recent:
                recent.move_to_end(digest)
            recent[digest] = until_ms
            if digest not in reported:
                self._holders.hold(digest, engine_id, until_ms)
        while recent and (len(recent) > MAX_RECENT or next(iter(recent.values())) <= now_ms):
            digest, _ = recent.popitem(last=False)
            if digest not in reported:
                self._holders.discard(digest, engine_id)

    def clear(self) -> None:
        """The engine is gone: it holds nothing."""
        for digest in (*self._reported, *self._recent):
            self._holders.discard(digest, self._engine_id)
        self._reported = frozenset()
        self._recent.clear()
