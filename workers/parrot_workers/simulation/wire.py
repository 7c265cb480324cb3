"""What lies between a component and Redis, and may break."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from redis.exceptions import ConnectionError as RedisConnectionError


class Loss(enum.StrEnum):
    """How a call fails."""

    REQUEST = "request"
    """The connection breaks before Redis has the command."""
    REPLY = "reply"
    """Redis carries the command out, and the connection breaks before the answer is read."""


@dataclasses.dataclass(slots=True)
class Traffic:
    """Counts the commands of all components, and says which of them fail.

    ``at`` are commands by their number, from 1 on: the loss of their connection, or anything to call before they are
    sent. ``fired`` counts what has happened.
    """

    num_commands: int = 0
    losses: dict[int, Loss] = dataclasses.field(default_factory=dict)
    actions: dict[int, Callable[[], None]] = dataclasses.field(default_factory=dict)
    num_fired: int = 0

    def next(self) -> Loss | None:
        """Count a command, do what is to be done at it, and return how it fails."""
        self.num_commands += 1
        action = self.actions.pop(self.num_commands, None)
        if action is not None:
            self.num_fired += 1
            action()
        loss = self.losses.pop(self.num_commands, None)
        if loss is not None:
            self.num_fired += 1
        return loss


class Wire:
    """One component's way to Redis. ``name`` is the component's."""

    def __init__(self, name: str, traffic: Traffic) -> None:
        self.name = name
        self._traffic = traffic
        self._is_cut = False
        self._ends: dict[object, Callable[[], None]] = {}

    @property
    def is_cut(self) -> bool:
        """Whether nothing comes through."""
        return self._is_cut

    def cut(self) -> None:
        """Let nothing through any more; what waits for an answer is told that its connection is broken."""
        self._is_cut = True
        for breaks in list(self._ends.values()):
            breaks()

    def mend(self) -> None:
        """Let everything through again."""
        self._is_cut = False

    def attach(self, end: object, breaks: Callable[[], None]) -> None:
        """Have ``breaks`` called when the wire is cut."""
        self._ends[end] = breaks

    def detach(self, end: object) -> None:
        """Forget an end."""
        self._ends.pop(end, None)

    def send(self) -> Loss | None:
        """Count a command and return how it fails. Raises redis-py's ConnectionError on a cut wire."""
        self.check()
        loss = self._traffic.next()
        self.check()  # what was to be done at this command may have been to cut it
        return loss

    def check(self) -> None:
        """Raise redis-py's ConnectionError on a cut wire."""
        if self._is_cut:
            raise self.broken()

    def broken(self) -> RedisConnectionError:
        """Return the error that a broken connection raises."""
        return RedisConnectionError(f"the connection of {self.name} to the simulated Redis is broken")
