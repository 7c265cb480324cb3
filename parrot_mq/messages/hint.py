"""Hints to an engine about the beginning of a prompt: compute it ahead, keep it."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
from pydantic.dataclasses import dataclass

from parrot_mq.messages.request import Binding

MAX_RETAIN_S = 3600.0
"""Longest time that one hint keeps anything: a scheduler that dies must not leave its wishes behind for long."""


@dataclass(frozen=True, slots=True, config=pydantic.ConfigDict(extra="forbid"))
class PrefixHint:
    """The first ``end`` segments of a template, filled in from ``bindings``, as requests of ``tenant`` would read them.

    ``key`` names the hint: another one of the same key replaces it. ``retain_s`` is how long to keep the prefix; one to
    compute it keeps it too, if it says so. Variables must be resolved, and none be an earlier output of the same call
    (which a request sees raw). By reference, so that it stays small: the control stream keeps thousands.

    ``follow`` (of a hint to compute) is the variable that stands right behind those segments and is being generated:
    its tokens are computed too, as they come. It has no transform: what is generated is what will be read. Only then
    ``end`` may be 0: the prompt begins with that variable.
    """

    key: Annotated[str, pydantic.Field(min_length=1, max_length=200)]
    tenant: Annotated[str, pydantic.Field(min_length=1)]
    function: Annotated[str, pydantic.Field(min_length=1)]
    """Digest of the template."""
    end: Annotated[int, pydantic.Field(ge=0)]
    bindings: dict[str, Binding] = pydantic.Field(default_factory=dict)
    share_prefixes: bool = False
    retain_s: Annotated[float, pydantic.Field(ge=0, le=MAX_RETAIN_S, allow_inf_nan=False)] = 0.0
    follow: Annotated[str, pydantic.Field(max_length=200)] = ""

    def __post_init__(self) -> None:
        """Refuse a hint about nothing."""
        if not self.end and (self.retain_s or not self.follow):
            raise ValueError("a hint without a segment can only be to follow a variable")

    def to_json(self) -> str:
        """Return the hint as one line of JSON, defaults left out."""
        return _ADAPTER.dump_json(self, exclude_defaults=True).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse what ``to_json`` wrote. Raises ValueError (pydantic's) for anything else."""
        return _ADAPTER.validate_json(text)  # type: ignore[return-value]


_ADAPTER = pydantic.TypeAdapter(PrefixHint)
