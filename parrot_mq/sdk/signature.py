"""A semantic function's parameters, read from a Python signature."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin

from parrot_mq.errors import TemplateError
from parrot_mq.sdk.blocking.variable import BlockingVariable
from parrot_mq.sdk.markers import InputMarker, OutputSpec
from parrot_mq.sdk.variable import SemanticVariable

MISSING: Any = inspect.Parameter.empty
DEFAULT_OUTPUT = OutputSpec()
VARIABLES = (SemanticVariable, BlockingVariable)


class Role(enum.Enum):
    """What a parameter is for."""

    INPUT = "input"
    OUTPUT = "output"
    OBJECT = "object"
    """A Python object that is rendered into the prompt."""
    VARIABLE = "variable"
    """Annotated ``SemanticVariable``: the template says whether it is an input or an output."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; ``default`` is ``MISSING`` where the caller must give it. ``output`` is set for outputs."""

    name: str
    role: Role
    default: Any = MISSING
    output: OutputSpec | None = None
    positional: bool = True


def read_signature(function: Callable[..., object], where: str) -> tuple[Parameter, ...]:
    """Return the parameters of ``function``; ``TemplateError`` for a kind or an annotation that cannot be used."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise TemplateError(
            f"{where}: an annotation cannot be read: {error}; import what it names at the top of the module"
        ) from None
    return tuple(_parameter(parameter, where) for parameter in signature.parameters.values())


def _parameter(parameter: inspect.Parameter, where: str) -> Parameter:
    name, annotation, default = parameter.name, parameter.annotation, parameter.default
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise TemplateError(f"{where}: parameter {name!r}: a semantic function takes no *args and no **kwargs")
    if isinstance(annotation, str):
        raise TemplateError(f"{where}: parameter {name!r}: remove the quotes around the annotation {annotation!r}")
    positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    output = _output(annotation, default, f"{where}: parameter {name!r}")
    if output is not None:
        return Parameter(name, Role.OUTPUT, None, output, positional)
    if _is_input(annotation):
        return Parameter(name, Role.INPUT, default, None, positional)
    if annotation in VARIABLES:
        return Parameter(name, Role.VARIABLE, default, None, positional)
    return Parameter(name, Role.OBJECT, default, None, positional)


def _output(annotation: object, default: object, what: str) -> OutputSpec | None:
    """Return what is said about an output by the default, else by the annotation; None for another parameter."""
    spec = default if isinstance(default, OutputSpec) else annotation if isinstance(annotation, OutputSpec) else None
    if spec is None and annotation is OutputSpec:
        spec = DEFAULT_OUTPUT
    if spec is None:
        return None
    declared = spec.type if annotation in (MISSING, OutputSpec, *VARIABLES) else annotation
    if isinstance(declared, OutputSpec):
        declared = declared.type
    for kind in (spec.type, declared):
        if kind not in (str, "str"):
            raise TemplateError(
                f"{what}: outputs of type {getattr(kind, '__name__', kind)} are not available yet, only str; "
                "take the text and parse it, or use transform=json_field(...) or regex(...)"
            )
    return spec


def _is_input(annotation: object) -> bool:
    if get_origin(annotation) is not Annotated:
        return False
    return any(isinstance(extra, InputMarker) for extra in get_args(annotation)[1:])


def bind(
    parameters: tuple[Parameter, ...], where: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments by name, defaults filled in; ``TypeError`` as Python raises it for a wrong call."""
    given: dict[str, Any] = {}
    if args:
        positional = [parameter.name for parameter in parameters if parameter.positional]
        if len(args) > len(positional):
            raise TypeError(f"{where}() takes {len(positional)} positional arguments but {len(args)} were given")
        given = dict(zip(positional, args, strict=False))
    if kwargs:
        names = {parameter.name for parameter in parameters}
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"{where}() got multiple values for argument {name!r}")
            if name not in names:
                raise TypeError(f"{where}() got an unexpected keyword argument {name!r}")
            given[name] = value
    if len(given) < len(parameters):
        for parameter in parameters:
            if parameter.name not in given:
                if parameter.default is MISSING:
                    raise TypeError(f"{where}() missing required argument {parameter.name!r}")
                given[parameter.name] = parameter.default
    return given
