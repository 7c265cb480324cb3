"""Task groups on their way into the batch: members come in together, so that what they share is computed and read once.

Parrot (OSDI'24) minimises the completion time of a group as a whole, and its kernel reads a shared prefix once for all
who are in the batch. Members are sent together, but reach the engine one by one. So they take their places in the queue
next to the one that came first, and while other sequences run they wait a little for each other: at most ``MAX_HELD``
plans, whatever becomes of those that are missing. An engine that runs nothing else waits for nobody; what comes a step
later finds the first one's prefix in the cache.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from parrot_workers.engine.port import SequenceInput

MAX_HELD = 2
"""Plans that a group is held for: a step or two hide the milliseconds in which the rest arrives."""


class Member(Protocol):
    """A sequence, as far as its task group goes; ``place`` is its rank and age in the queue."""

    @property
    def source(self) -> SequenceInput:
        """What its owner asked for."""

    place: tuple[float, int]


@dataclasses.dataclass(slots=True)
class _Group:
    place: tuple[float, int]
    num_expected: int
    num_come: int = 0
    num_held: int = 0
    waiting: set[Member] = dataclasses.field(default_factory=set)

    @property
    def is_held(self) -> bool:
        return self.num_come < self.num_expected and self.num_held < MAX_HELD


class Siblings:
    """The groups of which somebody waits. Costs nothing for sequences without a group."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def come(self, sequence: Member) -> None:
        """A sequence begins to wait; it gets its place beside those of its group."""
        source = sequence.source
        if not source.group or source.group_size < 2:
            return
        group = self._groups.get(_key(sequence))
        if group is None:
            group = self._groups[_key(sequence)] = _Group(sequence.place, source.group_size)
        group.num_come += 1
        group.num_expected = max(group.num_expected, source.group_size)
        group.waiting.add(sequence)
        sequence.place = group.place

    def leave(self, sequence: Member) -> None:
        """A sequence waits no more; one that is in no group is ignored."""
        group = self._groups.get(_key(sequence)) if sequence.source.group else None
        if group is not None:
            group.waiting.discard(sequence)
            if not group.waiting:
                del self._groups[_key(sequence)]

    def begin_plan(self) -> None:
        """Another step is planned."""
        for group in self._groups.values():
            group.num_held += 1

    def holds(self, sequence: Member) -> bool:
        """Whether a waiting sequence should be passed over in this plan because others of its group are coming."""
        group = self._groups.get(_key(sequence)) if sequence.source.group else None
        return group is not None and sequence in group.waiting and group.is_held


def _key(sequence: Member) -> tuple[str, str]:
    return sequence.source.salt, sequence.source.group
