"""Hints that content will be wanted again: until when, and which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


class Retentions:
    """Hashes of blocks that are to be kept, each as long as one of the keys that name it lasts.

    Times are seconds of whatever monotonic clock the caller has. The books only: blocks know nothing of it.
    """

    def __init__(self) -> None:
        self._digests: dict[str, tuple[bytes, ...]] = {}
        self._until_s: dict[str, float] = {}
        self._counts: Counter[bytes] = Counter()
        self._next_s = math.inf  # nothing is due before; the time of a key that is gone may stand here

    def __contains__(self, digest: bytes | None) -> bool:
        return digest in self._counts

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, key: str, digests: Sequence[bytes], until_s: float) -> None:
        """Keep ``digests`` until ``until_s``. A key that is there must be removed first."""
        assert key not in self._digests, f"{key} is retained already"
        self._digests[key] = tuple(digests)
        self._until_s[key] = until_s
        self._counts.update(digests)
        self._next_s = min(self._next_s, until_s)

    def remove(self, key: str) -> list[bytes]:
        """Forget ``key``, unknown ones too; return the hashes that nobody keeps any more."""
        digests = self._digests.pop(key, ())
        self._until_s.pop(key, None)
        freed = []
        for digest in digests:
            self._counts[digest] -= 1
            if not self._counts[digest]:
                del self._counts[digest]
                freed.append(digest)
        return freed

    def due(self, now_s: float) -> list[str]:
        """Return the keys whose time is up; costs nothing while there is none."""
        if now_s < self._next_s:
            return []
        due = [key for key, until_s in self._until_s.items() if until_s <= now_s]
        if not due:
            self._next_s = min(self._until_s.values(), default=math.inf)
        return due
