"""Which engine read a prefix last, so far as anybody remembers. A belief: what is cached is up to the engine."""

from __future__ import annotations

from collections import OrderedDict

MAX_PREFIXES = 65_536
"""Prefixes remembered; the least recently read one is forgotten first."""


class Whereabouts:
    """Engines by the key of a prefix."""

    def __init__(self) -> None:
        self._engines: OrderedDict[str, str] = OrderedDict()

    def get(self, key: str) -> str:
        """Return the engine that has a prefix; "" if none is known."""
        return self._engines.get(key, "")

    def note(self, key: str, engine_id: str) -> None:
        """An engine reads a prefix, or has computed it."""
        self._engines[key] = engine_id
        self._engines.move_to_end(key)
        if len(self._engines) > MAX_PREFIXES:
            self._engines.popitem(last=False)
