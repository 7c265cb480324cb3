"""Semantic functions: prompt templates that are called like Python functions."""

from __future__ import annotations

import copy
import inspect
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from parrot_mq.errors import TemplateError
from parrot_mq.sdk.ambient import ambient_session, blocking_session, required_session
from parrot_mq.sdk.call import CallBuilder
from parrot_mq.sdk.formatters import Formatter, default_formatter
from parrot_mq.sdk.markers import OutputSpec
from parrot_mq.sdk.plan import Plan, compile_plan, warn_of_spaces
from parrot_mq.sdk.session import Session
from parrot_mq.sdk.signature import DEFAULT_OUTPUT, Parameter, Role, bind, read_signature
from parrot_mq.sdk.template import Template
from parrot_mq.sdk.variable import SemanticVariable, VariableList

P = ParamSpec("P")
R = TypeVar("R")


class SemanticFunction(Generic[P, R]):
    """A function whose body is a prompt: its docstring is the template, its parameters are inputs and outputs.

    Calling it submits its requests and returns at once: one output as a ``SemanticVariable`` (``n`` > 1: a
    ``VariableList``), several as a named tuple in the order of the template, or as ``returns`` (a class that takes the
    outputs by position, such as a NamedTuple of yours).

    Parameters annotated ``Input`` (or ``SemanticVariable``) are inputs and take a variable or a text; those annotated
    ``Output`` are outputs, for which the caller may give a variable that was made before; all others are Python
    objects, rendered into the prompt by ``formatter``. ``model`` is the model's name, else the session's.

    Raises ``TemplateError`` at definition; ``BadType``, ``TypeError`` and ``ConfigError`` at the call.
    """

    @overload
    def __init__(
        self: SemanticFunction[P, SemanticVariable],
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
    def __init__(
        self,
        function: Callable[P, object],
        *,
        returns: Callable[..., Any] | None = None,
        model: str = "",
        formatter: Formatter = default_formatter,
        priority: int = 0,
    ) -> None:
        name = getattr(function, "__name__", "function")
        if not function.__doc__:
            raise TemplateError(f"{name}: a semantic function needs a docstring, its prompt (python -OO strips them)")
        template = Template(inspect.cleandoc(function.__doc__), name)
        plan = compile_plan(name, template, read_signature(function, name))
        warn_of_spaces(plan, function)
        self._set_up(plan, returns, model, formatter, priority)
        self.__wrapped__ = function
        self.__module__ = function.__module__
        self.__qualname__ = getattr(function, "__qualname__", name)
        self.__doc__ = function.__doc__

    def _set_up(
        self, plan: Plan, returns: Callable[..., Any] | None, model: str, formatter: Formatter, priority: int
    ) -> None:
        self._plan = plan
        self._model = model
        self._formatter = formatter
        self._priority = priority
        self._session: Session | None = None
        self.__name__ = plan.record.name
        if returns is None and len(plan.outputs) > 1:
            names = [output.name for output in plan.outputs]
            returns = namedtuple(f"{plan.record.name}_outputs", names, rename=True)  # type: ignore[misc, no-redef]
        self._returns = returns
        self._names = frozenset(parameter.name for parameter in plan.parameters)

    @classmethod
    def from_template(
        cls,
        template: str,
        *,
        name: str,
        outputs: Mapping[str, OutputSpec] | None = None,
        model: str = "",
        formatter: Formatter = default_formatter,
        priority: int = 0,
    ) -> SemanticFunction[..., SemanticVariable]:
        """Make a function from a template's exact text (no ``cleandoc``).

        Names in ``outputs``, or written ``{{output:name}}``, are outputs; all others are inputs, in the order of
        their first appearance.
        """
        parsed = Template(template, name)
        specs = dict(outputs or {})
        for placeholder in parsed.placeholders:
            if placeholder.direction == "output":
                specs.setdefault(placeholder.name, DEFAULT_OUTPUT)
        names = dict.fromkeys(placeholder.name for placeholder in parsed.placeholders)
        inputs = [Parameter(name, Role.INPUT) for name in names if name not in specs]
        generated = [Parameter(name, Role.OUTPUT, None, spec, False) for name, spec in specs.items()]
        plan = compile_plan(name, parsed, (*inputs, *generated))
        warn_of_spaces(plan)
        function = cast("SemanticFunction[..., SemanticVariable]", cls.__new__(cls))
        function._set_up(plan, None, model, formatter, priority)
        function.__doc__ = template
        return function

    @property
    def digest(self) -> str:
        """The digest of the template, by which the service knows it."""
        return self._plan.record.digest

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in the order of the template."""
        return tuple(output.name for output in self._plan.outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, in the order of the signature."""
        return tuple(parameter.name for parameter in self._plan.parameters if parameter.role is Role.INPUT)

    def using(
        self, *, session: Session | None = None, model: str | None = None, priority: int | None = None
    ) -> SemanticFunction[P, R]:
        """Return the same function bound to a session, a model or a priority."""
        other = copy.copy(self)
        if session is not None:
            other._session = session
        if model is not None:
            other._model = model
        if priority is not None:
            other._priority = priority
        return other

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Submit the call and return its outputs at once.

        The session is ``session=`` (or ``using(session=...)``), else the ambient one, else that of the inputs.
        """
        blocking = blocking_session()
        if blocking is not None:
            return cast("R", blocking.call(self, args, kwargs))
        return cast("R", self.shaped(self.submit(args, kwargs)))

    def submit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[SemanticVariable | VariableList, ...]:
        """Submit a call, on the event loop of its session; return its outputs in the order of the template."""
        session: Session | None = None
        if "session" in kwargs and "session" not in self._names:
            kwargs = dict(kwargs)
            session = kwargs.pop("session")
        arguments = bind(self._plan.parameters, self.__name__, args, kwargs)
        session = (
            session or self._session or ambient_session() or _session_of(arguments) or required_session(self.__name__)
        )
        builder = CallBuilder(self._plan, session, self._formatter, self._model or session.model, self._priority)
        builder.bind(arguments)
        return builder.submit()

    def shaped(self, outputs: tuple[Any, ...]) -> Any:
        """Return outputs as a call gives them: the only one, or all as ``returns`` makes them."""
        return outputs[0] if self._returns is None else self._returns(*outputs)

    def __repr__(self) -> str:
        return f"<SemanticFunction {self.__name__}>"


def _session_of(arguments: Mapping[str, object]) -> Session | None:
    for value in arguments.values():
        if isinstance(value, SemanticVariable) and value.session is not None:
            return value.session
    return None


@overload
def semantic_function(function: Callable[P, object], /) -> SemanticFunction[P, SemanticVariable]: ...
@overload
def semantic_function(
    *, model: str = "", formatter: Formatter = default_formatter, priority: int = 0
) -> Callable[[Callable[P, object]], SemanticFunction[P, SemanticVariable]]: ...
@overload
def semantic_function(
    *,
    returns: Callable[..., R],
    model: str = "",
    formatter: Formatter = default_formatter,
    priority: int = 0,
) -> Callable[[Callable[P, object]], SemanticFunction[P, R]]: ...
def semantic_function(
    function: Callable[..., object] | None = None,
    /,
    *,
    returns: Callable[..., Any] | None = None,
    model: str = "",
    formatter: Formatter = default_formatter,
    priority: int = 0,
) -> Any:
    """Make a semantic function of a Python function: ``@semantic_function`` or ``@semantic_function(model=...)``.

    See ``SemanticFunction`` for the arguments.
    """

    def make(function: Callable[..., object]) -> SemanticFunction[..., Any]:
        if returns is None:
            return SemanticFunction(function, model=model, formatter=formatter, priority=priority)
        return SemanticFunction(function, returns=returns, model=model, formatter=formatter, priority=priority)

    return make if function is None else make(function)
