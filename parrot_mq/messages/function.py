"""A semantic function's template as the service knows it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib

import orjson


class SegmentKind(enum.StrEnum):
    """What a segment of a template is."""

    CONSTANT = "constant"
    INPUT = "input"
    OUTPUT = "output"


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a template: constant text, or the name of an input or output placeholder."""

    kind: SegmentKind
    text: str
    """The text of a constant, the name of a placeholder."""


@dataclasses.dataclass(frozen=True)
class FunctionRecord:
    """A template cut at its placeholders. Stored once per tenant and content, under its ``digest``."""

    name: str
    segments: tuple[Segment, ...]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the segments (not of the name), 32 hex digits."""
        return hashlib.sha256(self.segments_json.encode()).hexdigest()[:32]

    @functools.cached_property
    def segments_json(self) -> str:
        """The segments as a JSON list of [kind, text]."""
        return orjson.dumps([[segment.kind.value, segment.text] for segment in self.segments]).decode()

    @classmethod
    def from_json(cls, name: str, segments_json: str | bytes) -> FunctionRecord:
        """Parse what ``segments_json`` gave."""
        return cls(name, tuple(Segment(SegmentKind(kind), text) for kind, text in orjson.loads(segments_json)))
