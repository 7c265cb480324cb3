"""What stands in a semantic function's signature: ``Input``, ``Output``, ``output(...)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import pydantic

from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams, Transform
from parrot_mq.sdk.variable import SemanticVariable

MAX_N = 1024
"""Most siblings that one output may ask for."""


class InputMarker:
    """Marks a parameter as an input."""


INPUT = InputMarker()

Input: TypeAlias = Annotated[SemanticVariable | str, INPUT]
"""Annotates an input: a semantic variable, or a text that becomes one on the fly."""

_DEFAULTS: dict[str, Any] = {
    field.name: getattr(SamplingParams(), field.name) for field in dataclasses.fields(SamplingParams)
}


class OutputSpec:
    """How an output is generated; as ``code: P.Output = P.output(max_tokens=200)`` or ``code: P.Output(...)``.

    ``n`` > 1 makes that many sibling requests (with ``seed``: seed, seed + 1, ...) and a ``VariableList``; it is for
    the last output of a template. ``transform`` is ``strip()``, ``json_field(path)`` or ``regex(pattern)``. The other
    arguments are those of ``SamplingParams``. ``type`` must be ``str`` in this version.

    Raises ``ConfigError`` that names the argument.
    """

    __slots__ = ("n", "sampling", "transform", "type")

    def __init__(
        self,
        type: object = str,  # noqa: A002 - what the output is
        *,
        n: int = 1,
        transform: Transform | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        max_tokens: int = _DEFAULTS["max_tokens"],
        min_tokens: int = 0,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        seed: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        ignore_eos: bool = False,
    ) -> None:
        if not isinstance(n, int) or not 1 <= n <= MAX_N:
            raise ConfigError(f"output(n={n!r}): n must be a whole number from 1 to {MAX_N}")
        if transform is not None and not isinstance(transform, Transform):
            raise ConfigError(f"output(transform={transform!r}): use strip(), json_field(path) or regex(pattern)")
        self.n = n
        self.type = type
        self.transform = transform
        try:
            self.sampling = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                stop_token_ids=tuple(stop_token_ids),
                seed=seed,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                repetition_penalty=repetition_penalty,
                logit_bias=dict(logit_bias or {}),
                ignore_eos=ignore_eos,
            )
        except pydantic.ValidationError as error:
            raise ConfigError(f"output(...): {_first_problem(error)}") from None

    def __class_getitem__(cls, type: object) -> OutputSpec:  # noqa: A002
        """``Output[T]``: an output of type ``T``."""
        return cls(type)

    def sibling_sampling(self, index: int) -> SamplingParams:
        """Return the sampling parameters of sibling ``index``: the seed, where there is one, plus ``index``."""
        if index == 0 or self.sampling.seed is None:
            return self.sampling
        return dataclasses.replace(self.sampling, seed=(self.sampling.seed + index) % 2**63)


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    return f"{name}={problem['input']!r}: {problem['msg']}" if name else problem["msg"]


output = OutputSpec
"""Describes an output: ``code: P.Output = P.output(max_tokens=200)``."""

if TYPE_CHECKING:
    Output: TypeAlias = SemanticVariable | OutputSpec
    """Annotates an output; a caller may pass a variable that was made before."""
else:
    Output = OutputSpec
