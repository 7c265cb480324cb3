"""Semantic variables whose methods block."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from parrot_mq.errors import ConfigError
from parrot_mq.messages import LATENCY, TTFT, Objective, VariableState
from parrot_mq.sdk.ambient import blocking_session
from parrot_mq.sdk.blocking.portal import Portal
from parrot_mq.sdk.explanation import Explanation
from parrot_mq.sdk.request_info import RequestInfo
from parrot_mq.sdk.variable import SemanticVariable, VariableList, one_link

T = TypeVar("T")


class BlockingVariable:
    """A semantic variable for synchronous programs: as ``parrot_mq.SemanticVariable``, but its methods block.

    ``SemanticVariable("text")`` is bound to the session of the surrounding ``with`` block at its first use.
    """

    __slots__ = ("_portal", "inner")

    def __init__(self, value: str | None = None, *, name: str = "") -> None:
        self.inner = SemanticVariable(value, name=name)
        self._portal: Portal | None = None

    @classmethod
    def wrap(cls, inner: SemanticVariable, portal: Portal) -> BlockingVariable:
        """Return an asynchronous variable as a blocking one."""
        variable = cls.__new__(cls)
        variable.inner, variable._portal = inner, portal
        return variable

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def id(self) -> str:
        """Its id, by which any process gets at it (``client.variable(id)``)."""
        if self.inner._link is None:
            self._run(_nothing)
        return self.inner._id

    @property
    def name(self) -> str:
        """The name of the placeholder or the one given; empty if it has none."""
        return self.inner.name

    def get(self, perf: Objective | None = LATENCY, timeout_s: float | None = None) -> str:
        """Wait for the value and return it; as ``parrot_mq.SemanticVariable.get``."""
        return self._run(lambda: self.inner.get(perf, timeout_s))

    def stream(self, perf: Objective = TTFT, timeout_s: float | None = None) -> Iterator[str]:
        """Iterate over pieces of the text while it is generated; as ``parrot_mq.SemanticVariable.stream``."""
        self._run(_nothing)
        pieces = self.inner.stream(perf, timeout_s)
        try:
            while (piece := self._run(lambda: _following(pieces))) is not None:
                yield piece
        finally:
            self._run(pieces.aclose)

    def set(self, value: str) -> None:
        """Give the variable its value; the first writer wins."""
        self._run(lambda: self.inner.set(value))

    def published(self) -> str:
        """Wait until Redis has confirmed the variable, and the call that produces it; return its id."""
        return self._run(self.inner.published)

    def state(self) -> VariableState:
        """Return its state in Redis."""
        return self._run(self.inner.state)

    def explain(self) -> Explanation:
        """Return why it is as it is."""
        return self._run(self.inner.explain)

    def producer(self) -> RequestInfo | None:
        """Return the request that produces it, None if nothing does."""
        return self._run(self.inner.producer)

    def consumers(self) -> tuple[RequestInfo, ...]:
        """Return the requests that read it, as far as they are known."""
        return self._run(self.inner.consumers)

    def objective(self) -> Objective | None:
        """Return the strictest objective that anybody has stated for it."""
        return self._run(self.inner.objective)

    def prefix_hash(self) -> tuple[str, ...]:
        """Return one hash per variable boundary of the prompt that produces it, up to the first unresolved input."""
        return self._run(self.inner.prefix_hash)

    def cancel(self, reason: str = "cancelled by the application") -> bool:
        """Cancel the request that produces it, and everything downstream."""
        return self._run(lambda: self.inner.cancel(reason))

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` on the loop, an unbound variable bound to the surrounding session first."""
        if self._portal is None:
            session = blocking_session()
            if session is None:
                raise ConfigError(
                    f"variable {self.name or 'without a name'} needs a session: use it inside "
                    "`with client.session() as session:`, or make it with session.variable(...)"
                )
            self._portal = session.portal
            if self.inner._link is None:
                session.portal.call(lambda: session.inner.adopt(self.inner))
        return self._portal.run(work())


async def _nothing() -> None:
    """Bind only."""


async def _following(pieces: Any) -> str | None:
    piece: str | None = await anext(pieces, None)
    return piece


class BlockingVariables(Sequence[BlockingVariable]):
    """Variables that belong together, for synchronous programs."""

    __slots__ = ("_variables",)

    def __init__(self, variables: Iterable[BlockingVariable]) -> None:
        self._variables = tuple(variables)

    @overload
    def __getitem__(self, index: int) -> BlockingVariable: ...
    @overload
    def __getitem__(self, index: slice) -> BlockingVariables: ...
    def __getitem__(self, index: int | slice) -> BlockingVariable | BlockingVariables:
        """Return one variable, or some of them."""
        if isinstance(index, slice):
            return BlockingVariables(self._variables[index])
        return self._variables[index]

    def __len__(self) -> int:
        return len(self._variables)

    def get(self, perf: Objective | None = LATENCY, timeout_s: float | None = None) -> list[str]:
        """Wait for all values and return them in order."""
        if not self._variables:
            return []
        inner = [variable.inner for variable in self._variables]

        async def work() -> list[str]:
            return await one_link(inner).resolve(inner, perf, timeout_s)

        return self._variables[0]._run(work)

    def cancel(self, reason: str = "cancelled by the application") -> int:
        """Cancel all that is not finished; returns how many were."""
        if not self._variables:
            return 0
        inner = VariableList(variable.inner for variable in self._variables)
        return self._variables[0]._run(lambda: inner.cancel(reason))


def wrapped(output: SemanticVariable | VariableList, portal: Portal) -> BlockingVariable | BlockingVariables:
    """Return an output of a call as blocking."""
    if isinstance(output, VariableList):
        return BlockingVariables(BlockingVariable.wrap(variable, portal) for variable in output)
    return BlockingVariable.wrap(output, portal)


def unwrapped(value: Any) -> Any:
    """Return an argument of a call as the asynchronous SDK takes it."""
    if isinstance(value, BlockingVariable):
        return value.inner
    if isinstance(value, BlockingVariables):
        return VariableList(variable.inner for variable in value)
    return value
