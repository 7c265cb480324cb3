"""Which prefixes an engine is to keep: those that are read next, as far as its budget goes.

Belady's rule (evict what is used farthest in the future; Belady, 1966) with the times that the graph predicts. No I/O,
no clock: times are milliseconds of whatever clock the caller has.
"""

from __future__ import annotations

import dataclasses
import heapq

MAX_EVICTED = 16
"""Prefixes that one may drive out: more are not looked at, so that a decision stays cheap."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What to tell the engine: ``kept`` from now on, ``released`` from now on."""

    kept: tuple[str, ...] = ()
    released: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class _Wish:
    num_tokens: int
    next_use_ms: float
    is_kept: bool = False
    ticket: int = 0
    """Which entry in the heaps is valid."""


_Heap = list[tuple[float, int, str]]
"""Sort key, ticket, name of the wish."""


class Retention:
    """The books of one engine: what is wished, and what of it is kept within ``budget_tokens``.

    A wish costs O(log n). Never is more kept than the budget, and none is kept while one that is read sooner and would
    fit in its place is not, as far as ``MAX_EVICTED`` go.
    """

    def __init__(self, budget_tokens: int = 0) -> None:
        self.budget_tokens = budget_tokens
        self.num_tokens = 0
        """Of all that is kept."""
        self._wishes: dict[str, _Wish] = {}
        self._farthest: _Heap = []
        self._nearest: _Heap = []
        self._ticket = 0

    def __len__(self) -> int:
        """Number of wishes."""
        return len(self._wishes)

    def keeps(self, key: str) -> bool:
        """Whether ``key`` is kept."""
        wish = self._wishes.get(key)
        return wish is not None and wish.is_kept

    def want(self, key: str, num_tokens: int, next_use_ms: float) -> Change:
        """Wish that a prefix is kept until it is read at about ``next_use_ms``; the same key again changes the wish."""
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = _Wish(num_tokens, next_use_ms)
        elif wish.next_use_ms == next_use_ms and wish.num_tokens == num_tokens:
            return Change()
        if wish.is_kept:
            self.num_tokens += num_tokens - wish.num_tokens
        wish.num_tokens, wish.next_use_ms = num_tokens, next_use_ms
        self._push(key, wish)
        return self._balance([])

    def drop(self, key: str) -> Change:
        """Wish nothing more for ``key``; unknown ones are ignored. Others may take its place."""
        wish = self._wishes.pop(key, None)
        if wish is None:
            return Change()
        if wish.is_kept:
            self.num_tokens -= wish.num_tokens
        return self._balance([key] if wish.is_kept else [])

    def resize(self, budget_tokens: int) -> Change:
        """Go on with another budget."""
        if budget_tokens == self.budget_tokens:
            return Change()
        self.budget_tokens = budget_tokens
        for key, wish in self._wishes.items():
            if not wish.is_kept:
                self._push(key, wish)  # it may have been set aside because it could never fit
        return self._balance([])

    def _balance(self, released: list[str]) -> Change:
        kept: list[str] = []
        while self.num_tokens > self.budget_tokens:
            released.append(self._release())
        while (nearest := self._peek(self._nearest, is_kept=False)) is not None:
            key, wish = nearest
            if wish.num_tokens > self.budget_tokens:
                heapq.heappop(self._nearest)
                continue
            if not self._make_room(wish, released):
                break
            heapq.heappop(self._nearest)
            wish.is_kept = True
            self.num_tokens += wish.num_tokens
            self._push(key, wish)
            kept.append(key)
        both = set(kept) & set(released)
        return Change(tuple(k for k in kept if k not in both), tuple(k for k in released if k not in both))

    def _make_room(self, wish: _Wish, released: list[str]) -> bool:
        """Release what is read later than ``wish`` until that fits; False, and nothing released, if it never does."""
        victims: list[tuple[str, _Wish]] = []
        free = self.budget_tokens - self.num_tokens
        while free < wish.num_tokens:
            farthest = self._peek(self._farthest, is_kept=True)
            if farthest is None or farthest[1].next_use_ms <= wish.next_use_ms or len(victims) == MAX_EVICTED:
                for key, victim in victims:
                    self._push(key, victim)
                return False
            heapq.heappop(self._farthest)
            victims.append(farthest)
            free += farthest[1].num_tokens
        for key, victim in victims:
            victim.is_kept = False
            self.num_tokens -= victim.num_tokens
            self._push(key, victim)
            released.append(key)
        return True

    def _release(self) -> str:
        farthest = self._peek(self._farthest, is_kept=True)
        assert farthest is not None, "tokens are kept, but no prefix is"
        key, wish = farthest
        heapq.heappop(self._farthest)
        wish.is_kept = False
        self.num_tokens -= wish.num_tokens
        self._push(key, wish)
        return key

    def _push(self, key: str, wish: _Wish) -> None:
        self._ticket += 1
        wish.ticket = self._ticket
        if wish.is_kept:
            heapq.heappush(self._farthest, (-wish.next_use_ms, wish.ticket, key))
        else:
            heapq.heappush(self._nearest, (wish.next_use_ms, wish.ticket, key))
        # Stale entries go when they come first; where most are such, all go at once.
        if len(self._farthest) + len(self._nearest) > 4 * len(self._wishes) + 64:
            self._farthest = self._valid(self._farthest)
            self._nearest = self._valid(self._nearest)

    def _valid(self, heap: _Heap) -> _Heap:
        valid = [entry for entry in heap if (w := self._wishes.get(entry[2])) is not None and w.ticket == entry[1]]
        heapq.heapify(valid)
        return valid

    def _peek(self, heap: _Heap, *, is_kept: bool) -> tuple[str, _Wish] | None:
        while heap:
            _, ticket, key = heap[0]
            wish = self._wishes.get(key)
            if wish is not None and wish.ticket == ticket and wish.is_kept is is_kept:
                return key, wish
            heapq.heappop(heap)
        return None
