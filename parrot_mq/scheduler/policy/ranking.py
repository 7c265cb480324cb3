"""A ranking: items by a key that changes, the smallest few at any time in logarithmic time."""

from __future__ import annotations

import heapq


class Ranking:
    """Items, by name, in the order of their keys; ties by name.

    A heap with lazy deletion: a new key is one more entry, and an entry whose key is not the item's any more is dropped
    when it comes to the front. It is rebuilt when most entries are such, so that memory follows the number of items.
    """

    __slots__ = ("_heap", "_keys")

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._keys: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def put(self, name: str, key: float) -> None:
        """Rank ``name`` by ``key``, which replaces the key that it had."""
        if self._keys.get(name) == key:
            return
        self._keys[name] = key
        heap = self._heap
        if len(heap) > 4 * len(self._keys) + 64:
            heap[:] = [(its_key, its_name) for its_name, its_key in self._keys.items()]
            heapq.heapify(heap)
        else:
            heapq.heappush(heap, (key, name))

    def discard(self, name: str) -> None:
        """Take ``name`` out, if it is here."""
        self._keys.pop(name, None)

    def first(self, count: int) -> list[tuple[float, str]]:
        """Return the ``count`` items of the smallest keys, with their keys, in order; fewer if there are fewer."""
        heap, keys = self._heap, self._keys
        found: list[tuple[float, str]] = []
        while heap and len(found) < count:
            entry = heapq.heappop(heap)
            # An item that came back to an earlier key has two valid entries, which then follow one another.
            if keys.get(entry[1]) == entry[0] and (not found or found[-1] != entry):
                found.append(entry)
        for entry in found:
            heapq.heappush(heap, entry)
        return found

    def due(self, until: float) -> list[str]:
        """Take out and return every item whose key is ``until`` or less."""
        heap, keys = self._heap, self._keys
        taken: list[str] = []
        while heap and heap[0][0] <= until:
            key, name = heapq.heappop(heap)
            if keys.get(name) == key:
                del keys[name]
                taken.append(name)
        return taken
