"""Semantic functions for synchronous programs: the same, with outputs that block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, cast, overload

from parrot_mq.errors import ConfigError
from parrot_mq.messages import LATENCY, Objective
from parrot_mq.sdk.ambient import blocking_session
from parrot_mq.sdk.blocking.session import BlockingSession
from parrot_mq.sdk.blocking.variable import BlockingVariable, BlockingVariables
from parrot_mq.sdk.combine import first as first_of
from parrot_mq.sdk.formatters import Formatter, default_formatter
from parrot_mq.sdk.function import SemanticFunction
from parrot_mq.sdk.markers import INPUT

P = ParamSpec("P")
R = TypeVar("R")

Input: TypeAlias = Annotated[BlockingVariable | str, INPUT]
"""Annotates an input: a semantic variable, or a text that becomes one on the fly."""


class BlockingFunction(SemanticFunction[P, R]):
    """A semantic function for synchronous programs; as ``parrot_mq.SemanticFunction``, its outputs block."""

    @overload
    def __init__(
        self: BlockingFunction[P, BlockingVariable],
        function: Callable[P, object],
        *,
        model: str = "",
        formatter: Formatter = default_formatter,
        priority: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        function: Callable[P, object],
        *,
        returns: Callable[..., R],
        model: str = "",
        formatter: Formatter = default_formatter,
        priority: int = 0,
    ) -> None: ...
    def __init__(self, function: Callable[P, object], **options: Any) -> None:
        super().__init__(function, **options)

    @classmethod
    def from_template(  # type: ignore[override]  # the same function, its outputs block
        cls, template: str, *, name: str, **options: Any
    ) -> BlockingFunction[..., BlockingVariable]:
        """Make a function from a template's exact text; as ``parrot_mq.SemanticFunction.from_template``."""
        return cast("BlockingFunction[..., BlockingVariable]", super().from_template(template, name=name, **options))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Submit the call and return its outputs at once.

        The session is ``session=``, else that of the surrounding ``with`` block.
        """
        explicit = kwargs.get("session")
        session = explicit if isinstance(explicit, BlockingSession) else blocking_session()
        if session is None:
            raise ConfigError(
                f"{self.__name__} needs a session: call it inside `with client.session() as session:`, "
                "or with session=..."
            )
        return cast("R", session.call(self, args, kwargs))


@overload
def semantic_function(function: Callable[P, object], /) -> BlockingFunction[P, BlockingVariable]: ...
@overload
def semantic_function(
    *, model: str = "", formatter: Formatter = default_formatter, priority: int = 0
) -> Callable[[Callable[P, object]], BlockingFunction[P, BlockingVariable]]: ...
@overload
def semantic_function(
    *,
    returns: Callable[..., R],
    model: str = "",
    formatter: Formatter = default_formatter,
    priority: int = 0,
) -> Callable[[Callable[P, object]], BlockingFunction[P, R]]: ...
def semantic_function(function: Callable[..., object] | None = None, /, **options: Any) -> Any:
    """Make a semantic function of a Python function; as ``parrot_mq.semantic_function``."""

    def make(function: Callable[..., object]) -> BlockingFunction[..., Any]:
        return BlockingFunction(function, **options)

    return make if function is None else make(function)


def gather(
    *variables: BlockingVariable | Iterable[BlockingVariable],
    perf: Objective | None = LATENCY,
    timeout_s: float | None = None,
) -> list[str]:
    """Wait for all ``variables`` and return their values in order; as ``parrot_mq.gather``."""
    return BlockingVariables(_flat(variables)).get(perf, timeout_s)


def first(
    k: int,
    *variables: BlockingVariable | Iterable[BlockingVariable],
    perf: Objective | None = LATENCY,
    timeout_s: float | None = None,
) -> BlockingVariables:
    """Return the first ``k`` of ``variables`` that have a value, and cancel the rest; as ``parrot_mq.first``."""
    all_of = _flat(variables)
    if not all_of:
        raise ValueError(f"first({k}, ...) needs at least one variable")
    by_inner = {id(variable.inner): variable for variable in all_of}
    inner = [variable.inner for variable in all_of]
    chosen = all_of[0]._run(lambda: first_of(k, inner, perf=perf, timeout_s=timeout_s))
    return BlockingVariables(by_inner[id(variable)] for variable in chosen)


def map(function: Callable[..., BlockingVariable], items: Iterable[Any], **kwargs: Any) -> BlockingVariables:  # noqa: A001 - as P.map
    """Call ``function(item, **kwargs)`` for each item; as ``parrot_mq.map``."""
    return BlockingVariables(function(item, **kwargs) for item in items)


def _flat(variables: Iterable[BlockingVariable | Iterable[BlockingVariable]]) -> list[BlockingVariable]:
    found: list[BlockingVariable] = []
    for item in variables:
        found.extend([item] if isinstance(item, BlockingVariable) else item)
    return found
