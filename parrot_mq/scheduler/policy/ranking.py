"""A ranking: items by a key that changes, the smallest few at any time."""

from __future__ import annotations

from bisect import bisect_left, insort

MAX_BUCKET = 1024

_Entry = tuple[float, str]


class Ranking:
    """Items, by name, in the order of their keys; ties by name.

    A sorted list in buckets of at most ``MAX_BUCKET``: a change costs the logarithm of the number of items in
    comparisons, and moves the pointers of a bucket. (A heap with lazy deletion was slower by half: most entries are
    replaced before they come to its front, and looking at the first few takes them off it.)
    """

    __slots__ = ("_buckets", "_keys", "_lasts")

    def __init__(self) -> None:
        self._keys: dict[str, float] = {}
        self._buckets: list[list[_Entry]] = []
        self._lasts: list[_Entry] = []
        """The last entry of each bucket; none is empty."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def put(self, name: str, key: float) -> None:
        """Rank ``name`` by ``key``, which replaces the key that it had."""
        before = self._keys.get(name)
        if before is not None:
            if before == key:
                return
            self._remove((before, name))
        self._keys[name] = key
        entry = (key, name)
        if not self._buckets:
            self._buckets.append([entry])
            self._lasts.append(entry)
            return
        last = len(self._lasts) - 1
        at = min(bisect_left(self._lasts, entry), last) if last else 0
        bucket = self._buckets[at]
        insort(bucket, entry)
        self._lasts[at] = bucket[-1]
        if len(bucket) > MAX_BUCKET:
            half = len(bucket) // 2
            self._buckets.insert(at + 1, bucket[half:])
            del bucket[half:]
            self._lasts.insert(at, bucket[-1])

    def discard(self, name: str) -> None:
        """Take ``name`` out, if it is here."""
        key = self._keys.pop(name, None)
        if key is not None:
            self._remove((key, name))

    def _remove(self, entry: _Entry) -> None:
        at = bisect_left(self._lasts, entry) if len(self._lasts) > 1 else 0
        bucket = self._buckets[at]
        del bucket[bisect_left(bucket, entry)]
        if bucket:
            self._lasts[at] = bucket[-1]
        else:
            del self._buckets[at], self._lasts[at]

    def first(self, count: int) -> list[_Entry]:
        """Return the ``count`` items of the smallest keys, with their keys, in order; fewer if there are fewer."""
        found: list[_Entry] = []
        for bucket in self._buckets:
            found += bucket[: count - len(found)]
            if len(found) >= count:
                break
        return found

    def due(self, until: float) -> list[str]:
        """Take out and return every item whose key is ``until`` or less."""
        taken: list[str] = []
        while self._buckets and self._buckets[0][0][0] <= until:
            name = self._buckets[0][0][1]
            self.discard(name)
            taken.append(name)
        return taken
