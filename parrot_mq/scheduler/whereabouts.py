"""Which engines read a prefix last, so far as anybody remembers. A belief: what is cached is up to the engine."""

from __future__ import annotations

from collections import OrderedDict

MAX_PREFIXES = 65_536
"""Prefixes remembered; the least recently read one is forgotten first."""
MAX_ENGINES = 8
"""Engines remembered of one prefix, those that read it last."""


class Whereabouts:
    """Engines by the key of a prefix, the last reader last."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def of(self, key: str) -> tuple[str, ...]:
        """Return the engines that have a prefix."""
        return self._engines.get(key, ())

    def note(self, key: str, engine_id: str) -> bool:
        """An engine reads a prefix, or has computed it; return whether that is news: of many engines it is not."""
        before = self._engines.get(key, ())
        if not before or before[-1] != engine_id:
            others = tuple(engine for engine in before if engine != engine_id)
            self._engines[key] = (*others[1 - MAX_ENGINES :], engine_id)
        self._engines.move_to_end(key)
        if len(self._engines) > MAX_PREFIXES:
            self._engines.popitem(last=False)
        return engine_id not in before and len(before) < MAX_ENGINES

    def forget(self, engine_id: str) -> None:
        """An engine is gone, with all that it had. Looks at everything that is remembered: a few milliseconds."""
        for key in [key for key, engines in self._engines.items() if engine_id in engines]:
            left = tuple(engine for engine in self._engines[key] if engine != engine_id)
            if left:
                self._engines[key] = left
            else:
                del self._engines[key]
