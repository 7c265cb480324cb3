"""Semantic variables: futures of text that live in Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, overload

from parrot_mq.errors import BadType, ConfigError, ErrorRecord, ParrotError, Step, StepError, step_error
from parrot_mq.messages import LATENCY, TTFT, Objective, VariableState
from parrot_mq.sdk.ambient import required_session
from parrot_mq.sdk.collect import Collector
from parrot_mq.sdk.explain import explain
from parrot_mq.sdk.explanation import Explanation
from parrot_mq.sdk.graph import Request, Submission
from parrot_mq.sdk.primitives import consumers, prefix_hash, producer
from parrot_mq.sdk.request_info import RequestInfo
from parrot_mq.sdk.streaming import stream

if TYPE_CHECKING:
    from parrot_mq.sdk.call import Call
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.session import Session
    from parrot_mq.store.records import Outcome, Value


class SemanticVariable:
    """A text region of a prompt that connects calls: the output of one, an input of others.

    ``SemanticVariable("text")`` is bound to a session at its first use; ``session.variable("text")`` at once. Calling
    a semantic function returns its outputs as variables, whose values come later. A variable is set once.

    ``await variable`` is ``await variable.get()``.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_consumers",
        "_failure",
        "_given",
        "_id",
        "_link",
        "_name",
        "_request",
        "_session",
        "_stated",
        "_submission",
        "_text",
        "_wanted",
    )

    def __init__(self, value: str | None = None, *, name: str = "") -> None:
        if value is not None and not isinstance(value, str):
            raise BadType(f"SemanticVariable(value): expected str, got {type(value).__name__}; convert it first")
        self._id = ""
        self._name = name
        self._text = value
        """The value, once known here."""
        self._given: Value | None = None
        """The value as it was set by hand in this process."""
        self._wanted: Objective | None = None
        """The strictest objective that was asked for before it was sent: it goes out with the submit."""
        self._stated: Objective | None = None
        """The objective that its submit carried."""
        self._failure: tuple[ErrorRecord, tuple[Step, ...] | None] | None = None
        self._link: Link | None = None
        self._session: Session | None = None
        self._submission: Submission | None = None
        self._request: Request | None = None
        self._call: Call | None = None
        self._consumers: list[str] | None = None

    def __repr__(self) -> str:
        state = "ready" if self._text is not None else "error" if self._failure else "pending"
        return f"<SemanticVariable {self._name or '-'} {self._id or 'unbound'} {state}>"

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its id, by which any process gets at it (``client.variable(id)``); binds an unbound variable.

        Hand it on only after ``await variable.published()``.
        """
        self._bound()
        return self._id

    @property
    def name(self) -> str:
        """The name of the placeholder or the one given; empty if it has none."""
        return self._name

    @property
    def session(self) -> Session | None:
        """The session that it belongs to, None while unbound and for a variable of another process."""
        return self._session

    @property
    def call(self) -> Call | None:
        """The call of this process that produces it, if there is one."""
        return self._call

    # Its value -------------------------------------------------------------------------------------------------------

    async def get(self, perf: Objective | None = LATENCY, timeout_s: float | None = None) -> str:
        """Wait for the value and return it.

        ``perf`` tells the service what matters (LATENCY, THROUGHPUT, TTFT, TPOT, Deadline(seconds)); the strictest
        one stated so far holds; None states nothing. ``timeout_s`` is 300 s by default.

        Raises the typed ``StepError`` of the step that failed, with the chain of steps from it to here; ``NeverSet``
        if the time is over and nothing produces it, ``GetTimeout`` if something still does; the ``SubmitError`` of
        the submit that it was part of; ``UnknownVariable`` for an id that nobody made.
        """
        if self._text is not None and (self._submission is None or self._submission.settled.is_set()):
            return self._known()
        await self._bound().wait(Collector((self,), perf), timeout_s)
        return self._known()

    def __await__(self) -> Generator[object, None, str]:
        return self.get().__await__()

    def stream(self, perf: Objective = TTFT, timeout_s: float | None = None) -> AsyncGenerator[str, None]:
        """Iterate over pieces of the text while it is generated (the raw text, before a transform).

        The first piece brings what was generated before the stream was asked for; a variable that is ready already
        yields its whole value. ``timeout_s`` (300 s by default) bounds the wait for each piece. Raises as ``get``
        does, and ``StreamRestarted`` if the step was run again and went another way.
        """
        return stream(self._bound(), self, perf, timeout_s)

    async def set(self, value: str) -> None:
        """Give the variable its value. The first writer wins; the same value again is a no-op.

        Raises ``AlreadySet``, ``AlreadyProduced`` if a call produces it, ``ValueTooLarge``, ``UnknownVariable``.
        """
        await self._bound().set_variable(self, value)

    async def published(self) -> str:
        """Wait until Redis has confirmed the variable, and the call that produces it; return its id.

        Raises the error of the submit if it was refused.
        """
        await self._bound().confirm([self])
        return self._id

    # What is known about it ------------------------------------------------------------------------------------------

    async def state(self) -> VariableState:
        """Return its state in Redis. Raises ``UnknownVariable``."""
        return (await self._bound().record(self)).state

    async def explain(self) -> Explanation:
        """Return why it is as it is: what it waits for, who produces that, on which engine and why there, or what keeps
        it from an engine. ``str()`` of it reads.
        """
        return await explain(self._bound(), self)

    async def producer(self) -> RequestInfo | None:
        """Return the request that produces it, None if nothing does."""
        return await producer(self._bound(), self)

    async def consumers(self) -> tuple[RequestInfo, ...]:
        """Return the requests that read it, as far as they are known: those of this process, and those that wait."""
        return await consumers(self._bound(), self)

    async def objective(self) -> Objective | None:
        """Return the strictest objective that anybody has stated for it."""
        return (await self._bound().record(self)).objective

    async def prefix_hash(self) -> tuple[str, ...]:
        """Return one hash per variable boundary of the prompt that produces it, as far as its inputs are resolved.

        Two variables with an equal hash share the prompt up to that boundary. Empty if nothing produces it here.
        """
        return await prefix_hash(self._bound(), self)

    async def cancel(self, reason: str = "cancelled by the application") -> bool:
        """Cancel the request that produces it (or, without one, the variable itself) and everything downstream.

        Returns whether there was something to cancel.
        """
        return bool(await self._bound().cancel([self], reason))

    # Inside ----------------------------------------------------------------------------------------------------------

    def _bound(self) -> Link:
        """Return its way to the store; an unbound variable is bound to the ambient session."""
        if self._link is None:
            required_session(f"variable {self._name or 'without a name'}").adopt(self)
            assert self._link is not None
        return self._link

    def _known(self) -> str:
        if self._submission is not None:
            self._submission.report()
        assert self._text is not None
        return self._text

    def _settle(self, record: Outcome) -> None:
        """Take over the final state from Redis. A resolved variable lets go of the graph before it."""
        if record.error is not None:
            self._failure = (record.error, None)
            return
        if record.value is None:
            self._failure = (ErrorRecord("Expired", f"the value of {self._id} expired before it was read"), ())
        else:
            self._text = record.value
        if self._request is not None:
            self._request.inputs = ()

    @property
    def _is_settled(self) -> bool:
        return self._text is not None or self._failure is not None

    def _submissions(self) -> tuple[Submission, ...]:
        """Return the submissions that must be confirmed before Redis knows it."""
        made = (self._submission,) if self._submission is not None else ()
        return (*made, self._request.submission) if self._request is not None else made

    def _open_submission(self) -> Submission | None:
        """Return a submission that it is part of and that is not confirmed: under way, or refused."""
        for submission in self._submissions():
            if submission.error is not None or not submission.settled.is_set():
                return submission
        return None

    def _refused(self) -> ParrotError | None:
        """Return the error of the submit that it was part of, if that was refused."""
        for submission in self._submissions():
            if submission.error is not None:
                return submission.error
        return None


def failure(variable: SemanticVariable) -> StepError:
    """Return the typed error of a variable that has failed, its chain of steps where that was found."""
    assert variable._failure is not None
    record, chain = variable._failure
    return step_error(record, chain or ())


class VariableList(Sequence[SemanticVariable]):
    """Variables that belong together: the siblings of an output with ``n`` > 1, the results of ``map``.

    ``await variables`` is ``await variables.get()``: the values, in order.
    """

    __slots__ = ("_variables",)

    def __init__(self, variables: Iterable[SemanticVariable]) -> None:
        self._variables = tuple(variables)

    @overload
    def __getitem__(self, index: int) -> SemanticVariable: ...
    @overload
    def __getitem__(self, index: slice) -> VariableList: ...
    def __getitem__(self, index: int | slice) -> SemanticVariable | VariableList:
        """Return one variable, or some of them."""
        if isinstance(index, slice):
            return VariableList(self._variables[index])
        return self._variables[index]

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"<VariableList of {len(self)}>"

    async def get(self, perf: Objective | None = LATENCY, timeout_s: float | None = None) -> list[str]:
        """Wait for all values and return them in order; raises as ``SemanticVariable.get`` at the first failure."""
        return await one_link(self._variables).resolve(self._variables, perf, timeout_s) if self._variables else []

    def __await__(self) -> Generator[object, None, list[str]]:
        return self.get().__await__()

    async def cancel(self, reason: str = "cancelled by the application") -> int:
        """Cancel all that is not finished; returns how many were."""
        if not self._variables:
            return 0
        return await one_link(self._variables).cancel(self._variables, reason)


def one_link(variables: Sequence[SemanticVariable]) -> Link:
    """Return the way to the store of all ``variables``; ``ConfigError`` if they belong to several clients."""
    links = {id(link): link for link in (variable._bound() for variable in variables)}
    if len(links) != 1:
        raise ConfigError(f"variables of {len(links)} clients were given; gather those of each client on its own")
    return next(iter(links.values()))
