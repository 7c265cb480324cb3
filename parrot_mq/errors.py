"""Every error a user of parrot_mq can meet, as one tree.

    ParrotError
    ├── TemplateError              a prompt template is malformed (raised at decoration)
    ├── ConfigError                a setting or an environment is wrong
    ├── RankLost                   a process of a tensor-parallel engine is gone: the engine must be started anew
    ├── StoreError                 Redis answered something that a caller must handle
    │   ├── StoreUnavailable       Redis cannot be reached
    │   ├── Overloaded             a limit or Redis' memory is full; ``retry_after_s`` says when to come back
    │   ├── ValueTooLarge          a value exceeds the limit
    │   ├── Fenced                 a newer owner exists: this leader or worker must stop
    │   └── NotClaimed             a result came before its claim, and somebody streams it
    ├── SubmitError                a submit was refused as a whole; nothing of it is left behind
    │   ├── UnknownSession, SessionClosed
    │   ├── UnknownVariable        an id that nobody has made
    │   ├── Conflict               the same id with other content
    │   ├── AlreadySet             a variable that has a value already
    │   ├── AlreadyProduced        a variable that has a producer already
    │   ├── CycleError             the graph would contain a cycle
    │   └── BadType                an argument or id of the wrong type
    └── StepError                  a step of the graph failed; ``chain`` names the steps from it to here
        ├── EngineFailed           the engine gave up on the request (after its retries)
        ├── InvalidRequest         the engine cannot run it (prompt too long, bad sampling)
        ├── UnknownModel           no engine serves the model
        ├── TransformFailed        the output's transform did not match
        ├── Cancelled              somebody cancelled it
        ├── Expired                its session or a deadline ended
        ├── Forbidden              it belongs to another tenant
        ├── NeverSet               nobody produced or set the variable in time
        └── GetTimeout             the wait ended first; the step itself goes on
    StreamRestarted(ParrotError)   a retried step could not continue its stream; read again from the start

Errors that travel through Redis are records (``ErrorRecord``) with a ``kind``: the class name of the leaf.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step on the way from a failure to the variable that was asked for.

    ``request`` and ``variable`` are ids; ``function`` and ``variable_name`` are what the author called them.
    """

    request: str
    function: str
    variable: str
    variable_name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as it is stored on a variable: plain JSON, no traceback, never pickle.

    ``kind`` is the name of a class in this file; ``message`` names the thing and the remedy; ``request`` is the step
    that failed (empty if none did); ``engine`` is the last engine that had it.
    """

    kind: str
    message: str
    request: str = ""
    engine: str = ""
    attempts: int = 0

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return orjson.dumps(dataclasses.asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ErrorRecord:
        """Parse what ``to_json`` wrote; unknown fields are ignored so that newer writers can be read."""
        data: dict[str, Any] = orjson.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})


class ParrotError(Exception):
    """Base of every error that parrot_mq raises on purpose."""


class TemplateError(ParrotError):
    """A prompt template is malformed. The message shows the line and a caret under the column."""


class ConfigError(ParrotError):
    """A setting or the environment is wrong; the message says what to change."""


class RankLost(ParrotError):
    """A process of a tensor-parallel engine is gone, or does not answer: the engine must be started anew."""


class StoreError(ParrotError):
    """Redis answered something that the caller must handle."""


class StoreUnavailable(StoreError):
    """Redis cannot be reached at the configured address."""


class Overloaded(StoreError):
    """A limit is reached or Redis' memory is full: nothing was written.

    ``retry_after_s`` is the server's suggestion in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ValueTooLarge(StoreError):
    """A value is larger than ``limit_bytes``; nothing was written."""

    def __init__(self, message: str, size_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Fenced(StoreError):
    """A newer leader or a newer attempt exists; whoever gets this must stop acting on the object."""


class NotClaimed(StoreError):
    """A result came before the claim of its request, of which the pieces are wanted too."""


class SubmitError(ParrotError):
    """A submit was refused as a whole; nothing of it is left behind. ``culprit`` is the id or name at fault."""

    def __init__(self, message: str, culprit: str = "") -> None:
        super().__init__(message)
        self.culprit = culprit


class UnknownSession(SubmitError):
    """The session does not exist, or has expired."""


class SessionClosed(SubmitError):
    """The session takes no more work."""


class UnknownVariable(SubmitError):
    """No variable has this id."""


class Conflict(SubmitError):
    """The id exists with other content."""


class AlreadySet(SubmitError):
    """The variable has a value already, and it is another one; the first writer wins."""


class AlreadyProduced(SubmitError):
    """A request produces this variable, so nothing else may."""


class CycleError(SubmitError):
    """The graph would contain a cycle; the message lists it."""


class BadType(SubmitError, TypeError):
    """An argument or an id has the wrong type."""


class StepError(ParrotError):
    """A step of the graph failed.

    ``record`` is what was stored, ``chain`` the steps from the failed one (first) to the variable asked for (last).
    """

    def __init__(self, message: str, record: ErrorRecord | None = None, chain: tuple[Step, ...] = ()) -> None:
        super().__init__(message)
        self.record = record
        self.chain = chain


class EngineFailed(StepError):
    """The engine gave up on the request after its retries."""


class InvalidRequest(StepError):
    """The engine cannot run the request: prompt too long, bad sampling parameters."""


class UnknownModel(StepError):
    """No engine serves the model that the request asks for."""


class TransformFailed(StepError):
    """The output's transform did not match the generated text."""


class Cancelled(StepError):
    """Somebody cancelled the request, its call or its session."""


class Expired(StepError):
    """The session or a deadline ended before the step did."""


class Forbidden(StepError):
    """The variable belongs to another tenant."""


class NeverSet(StepError):
    """Nobody produced or set the variable within the time-out."""


class GetTimeout(StepError, TimeoutError):
    """The wait ended first; the step itself goes on."""


class StreamRestarted(ParrotError):
    """A retried step could not continue its stream where it stopped; read again from the start."""


STEP_ERRORS: dict[str, type[StepError]] = {
    cls.__name__: cls
    for cls in (
        EngineFailed,
        InvalidRequest,
        UnknownModel,
        TransformFailed,
        Cancelled,
        Expired,
        Forbidden,
        NeverSet,
        GetTimeout,
    )
}
"""The kinds that an ``ErrorRecord`` may carry."""

SUBMIT_ERRORS: dict[str, type[SubmitError]] = {
    cls.__name__: cls
    for cls in (
        UnknownSession,
        SessionClosed,
        UnknownVariable,
        Conflict,
        AlreadySet,
        AlreadyProduced,
        CycleError,
        BadType,
    )
}
"""The kinds that a script may answer to a submit."""


def step_error(record: ErrorRecord, chain: tuple[Step, ...] = ()) -> StepError:
    """Return the typed error of ``record``, its message followed by the chain of steps."""
    cls = STEP_ERRORS.get(record.kind, EngineFailed)
    message = record.message
    if chain:
        path = " -> ".join(f"{step.function or step.request}.{step.variable_name or step.variable}" for step in chain)
        message = f"{message} [steps: {path}]"
    return cls(message, record, chain)
