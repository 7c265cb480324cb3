"""A request: one prompt, one output, one completion; the unit of scheduling."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import orjson

from parrot_mq.messages.function import FunctionRecord, SegmentKind
from parrot_mq.messages.sampling import SamplingParams


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """What stands in a placeholder: a variable by id, or text rendered by the caller (exactly one is set)."""

    variable: str = ""
    text: str | None = None


class TransformKind(enum.StrEnum):
    """How raw generated text becomes the variable's value."""

    STRIP = "strip"
    JSON_FIELD = "json_field"
    REGEX = "regex"


@dataclasses.dataclass(frozen=True, slots=True)
class Transform:
    """A transform with its argument: a dotted path for JSON_FIELD, a pattern (group 1, or the match) for REGEX."""

    kind: TransformKind
    argument: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestSpec:
    """All that is fixed about a request when it is submitted.

    Its prompt is ``function``'s segments up to (not including) the segment at index ``prompt_end``, with every
    placeholder filled from ``bindings``; earlier outputs of the same call are inputs here (their raw text: see
    ``raw_inputs``). Its completion becomes the value of variable ``output``.
    """

    id: str
    call: str
    function: str
    """Digest of the template."""
    function_name: str
    prompt_end: int
    bindings: dict[str, Binding]
    output: str
    output_name: str
    model: str = ""
    """The model's name; empty: whatever engine there is."""
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    transform: Transform | None = None
    raw_inputs: tuple[str, ...] = ()
    """Inputs that are earlier outputs of the same call: the continuation sees their raw text, not the transformed."""
    priority: int = 0
    share_prefixes: bool = False
    """Its prompt's keys and values may be shared with other tenants who say so too."""

    def inputs(self, function: FunctionRecord) -> tuple[str, ...]:
        """Return the ids of the variables in the prompt, in order of first appearance, without repeats."""
        names = (s.text for s in function.segments[: self.prompt_end] if s.kind is not SegmentKind.CONSTANT)
        return tuple(dict.fromkeys(b.variable for b in map(self.bindings.__getitem__, names) if b.variable))

    def to_json(self) -> str:
        """Return the request as one line of JSON, defaults left out."""
        data: dict[str, Any] = {
            "id": self.id,
            "call": self.call,
            "function": self.function,
            "function_name": self.function_name,
            "prompt_end": self.prompt_end,
            "bindings": {
                name: {"variable": b.variable} if b.text is None else {"text": b.text}
                for name, b in self.bindings.items()
            },
            "output": self.output,
            "output_name": self.output_name,
        }
        if self.model:
            data["model"] = self.model
        if sampling := self.sampling.to_dict():
            data["sampling"] = sampling
        if self.transform:
            data["transform"] = [self.transform.kind.value, self.transform.argument]
        if self.raw_inputs:
            data["raw_inputs"] = self.raw_inputs
        if self.priority:
            data["priority"] = self.priority
        if self.share_prefixes:
            data["share_prefixes"] = True
        return orjson.dumps(data).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> RequestSpec:
        """Parse what ``to_json`` wrote."""
        return cls.from_dict(orjson.loads(text))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RequestSpec:
        """Build a spec from parsed JSON."""
        transform = data.get("transform")
        return cls(
            id=data["id"],
            call=data["call"],
            function=data["function"],
            function_name=data["function_name"],
            prompt_end=data["prompt_end"],
            bindings={name: Binding(b.get("variable", ""), b.get("text")) for name, b in data["bindings"].items()},
            output=data["output"],
            output_name=data["output_name"],
            model=data.get("model", ""),
            sampling=SamplingParams.from_dict(data["sampling"]) if "sampling" in data else _DEFAULT_SAMPLING,
            transform=Transform(TransformKind(transform[0]), transform[1]) if transform else None,
            raw_inputs=tuple(data.get("raw_inputs", ())),
            priority=data.get("priority", 0),
            share_prefixes=data.get("share_prefixes") is True,
        )


_DEFAULT_SAMPLING = SamplingParams()
