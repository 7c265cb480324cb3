"""Which engines hold which prefixes: what heartbeats list, and what was assigned to them lately."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from parrot_mq.scheduler.policy.prefix import Boundary

RECENT_MS = 30_000.0
"""A prefix that was assigned to an engine counts as resident there for this long, whatever its heartbeat lists."""
MAX_RECENT = 1024


_Held = tuple[str, float] | dict[str, float]
"""Who holds a prefix, and until when. Most have one holder, which then stands as it is.

Plain dicts here and below, though they are changed at their front, where they are read past what was deleted (at most
some three times their length, a nanosecond each): an ``OrderedDict`` takes three times the memory, and there are so
many that memory is what counts.
"""


class Holders:
    """The engines that hold a prefix, by digest, and until when (milliseconds on the clock of decisions) each does.

    One dict for all engines, so that to ask about one prefix on several engines touches the same memory. A decision
    does just that: what is held of the prefix that was asked for last is remembered until it may have changed.
    """

    __slots__ = ("_asked", "_found", "_of")

    def __init__(self) -> None:
        self._of: dict[str, _Held] = {}
        self._asked: Sequence[Boundary] = ()
        self._found: list[tuple[_Held, int]] = []
        """Of the prefix that was asked for last: the holders, and the tokens, of each boundary that has any."""

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, digest: str) -> bool:
        return digest in self._of

    def _held(self, prefix: Sequence[Boundary]) -> list[tuple[_Held, int]]:
        """Return what is held of ``prefix``, longest first."""
        if prefix is not self._asked:
            of = self._of
            self._asked = prefix
            self._found = [(of[digest], num_tokens) for digest, num_tokens in reversed(prefix) if digest in of]
        return self._found

    def cached_tokens(self, prefix: Sequence[Boundary], engine_id: str, now_ms: float) -> int:
        """Return how many tokens of ``prefix`` an engine holds: those up to the last boundary of which it does."""
        for holders, num_tokens in self._found if prefix is self._asked else self._held(prefix):
            if isinstance(holders, tuple):
                if holders[0] == engine_id and holders[1] > now_ms:
                    return num_tokens
            elif holders.get(engine_id, now_ms) > now_ms:
                return num_tokens
        return 0

    def most_tokens(self, prefix: Sequence[Boundary]) -> int:
        """Return of how many tokens of ``prefix`` there may be a holder."""
        held = self._held(prefix)
        return held[0][1] if held else 0

    def some_of(self, prefix: Sequence[Boundary], min_tokens: int, limit: int) -> Iterator[list[str]]:
        """Go through the boundaries of ``prefix`` of ``min_tokens`` or more that are held, longest first: up to
        ``limit`` holders of each; of more, the next few in turn.

        A few in turn are enough to keep the load of many holders even (the power of d choices, Mitzenmacher 2001).
        """
        for holders, num_tokens in self._held(prefix):
            if num_tokens < min_tokens:
                return
            if isinstance(holders, tuple):
                yield [holders[0]]
            elif len(holders) <= limit:
                yield list(holders)
            else:
                some = list(itertools.islice(holders, limit))
                for engine_id in some:
                    holders[engine_id] = holders.pop(engine_id)
                yield some

    def hold(self, digest: str, engine_id: str, until_ms: float) -> None:
        """Note a holder, or until when it is one."""
        self._asked, self._found = (), []
        of = self._of
        holders = of.get(digest)
        if holders is None:
            of[digest] = engine_id, until_ms
        elif not isinstance(holders, tuple):
            holders[engine_id] = until_ms
        elif holders[0] == engine_id:
            of[digest] = engine_id, until_ms
        else:
            of[digest] = {holders[0]: holders[1], engine_id: until_ms}

    def discard(self, digest: str, engine_id: str) -> None:
        """Forget a holder."""
        self._asked, self._found = (), []
        holders = self._of.get(digest)
        if isinstance(holders, dict):
            holders.pop(engine_id, None)
            if not holders:
                del self._of[digest]
        elif holders is not None and holders[0] == engine_id:
            del self._of[digest]


class Residency:
    """The prefixes that one engine holds, as far as the scheduler knows: it keeps ``holders`` up to date."""

    __slots__ = ("_engine_id", "_holders", "_recent", "_reported")

    def __init__(self, engine_id: str, holders: Holders) -> None:
        self._engine_id = engine_id
        self._holders = holders
        self._reported: frozenset[str] = frozenset()
        """What it lists counts as held for as long as it does."""
        self._recent: dict[str, float] = {}
        """Until when what was assigned counts, oldest first."""

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
        """Note that a request with ``prefix`` was given to the engine.

        ``now_ms`` may lie in the past, for a request that was there before: what counts until later stays as it is.
        """
        recent, reported, engine_id, until_ms = self._recent, self._reported, self._engine_id, now_ms + RECENT_MS
        for digest, _ in prefix:
            its_until_ms = recent[digest] = max(recent.pop(digest, 0.0), until_ms)
            if digest not in reported:
                self._holders.hold(digest, engine_id, its_until_ms)
        for digest in self._outdated(now_ms):
            del recent[digest]
            if digest not in reported:
                self._holders.discard(digest, engine_id)

    def _outdated(self, now_ms: float) -> list[str]:
        """Return what was assigned too long ago to count, or is too much."""
        found: list[str] = []
        spare = len(self._recent) - MAX_RECENT
        for digest, until_ms in self._recent.items():
            if until_ms > now_ms and len(found) >= spare:
                break
            found.append(digest)
        return found

    def clear(self) -> None:
        """The engine is gone: it holds nothing."""
        for digest in (*self._reported, *self._recent):
            self._holders.discard(digest, self._engine_id)
        self._reported = frozenset()
        self._recent.clear()
