"""Life cycles, as they stand in the ``state`` fields of Redis hashes."""

from __future__ import annotations

import enum


class VariableState(enum.StrEnum):
    """Life of a semantic variable: set once, to a value or to an error."""

    PENDING = "pending"
    READY = "ready"
    ERROR = "error"


class RequestState(enum.StrEnum):
    """Life of a request.

    waiting (for inputs, or for its back-off) -> ready -> queued (in an engine's stream) -> running (leased) -> done;
    dead when it failed for good (or an input did), cancelled when somebody asked for it.
    """

    WAITING = "waiting"
    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self in (RequestState.DONE, RequestState.DEAD, RequestState.CANCELLED)


class SessionState(enum.StrEnum):
    """Life of a session: ``closed`` takes no new work but lets what is there finish."""

    OPEN = "open"
    CLOSED = "closed"
