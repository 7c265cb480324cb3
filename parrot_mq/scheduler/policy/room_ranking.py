"""Engines by a score, so that the best of those with enough room are found at once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection

SMALLEST, LARGEST = 64, 65_536
"""Room is told apart from here (tokens) to there, by factors of four: less, or more, is as good as none, or any."""
NUM_SEEN = 8
"""Of engines whose room may be too small by less than that factor, so many of the best are looked at."""

_Entry = tuple[float, str, float]
"""Score, name, room. Ties of the score go by name."""


def room_class(room: float) -> int:
    """Return in which class so much room is, in tokens; all of a higher class have more, and all of a lower less."""
    if room >= LARGEST:
        room = LARGEST
    return ((int(room) // SMALLEST).bit_length() + 1) // 2 if room >= SMALLEST else 0


class RoomRanking:
    """Items, by name, in the order of their scores, apart for each class of room: the smallest scores come first.

    A sorted list for each class: a change costs the logarithm of its length in comparisons, and moves its pointers
    (0.1 us for a thousand).
    """

    __slots__ = ("_classes", "_of")

    def __init__(self) -> None:
        self._classes: list[list[_Entry]] = [[] for _ in range(room_class(LARGEST) + 1)]
        self._of: dict[str, tuple[list[_Entry], _Entry]] = {}
        """Where each stands."""

    def __len__(self) -> int:
        return len(self._of)

    def put(self, name: str, score: float, room: float) -> None:
        """Rank ``name``, which has so much room, by ``score``, whatever it was before."""
        before = self._of.get(name)
        if before is not None:
            its_class, entry = before
            del its_class[bisect_left(its_class, entry)]
        its_class, entry = self._classes[room_class(room)], (score, name, room)
        self._of[name] = its_class, entry
        insort(its_class, entry)

    def discard(self, name: str) -> None:
        """Take ``name`` out, if it is here."""
        found = self._of.pop(name, None)
        if found is not None:
            its_class, entry = found
            del its_class[bisect_left(its_class, entry)]

    def best(self, need: float, count: int, without: Collection[str] = ()) -> list[_Entry]:
        """Return up to ``count`` entries of the smallest scores with room for ``need``, none of them in ``without``.

        Of those that have between a quarter and four times of it only the first few are looked at.
        """
        if not self._of:
            return []
        least = room_class(need)
        found = [entry for entry in self._classes[least][:NUM_SEEN] if entry[2] >= need]
        for its_class in self._classes[least + 1 :]:
            if its_class:
                found += its_class[: count + len(without)]
        if without:
            found = [entry for entry in found if entry[1] not in without]
        found.sort()
        return found[:count]
