"""Prompt templates: text with ``{{placeholders}}``, cut into segments when a function is defined."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Literal, NoReturn, TypeAlias

from parrot_mq.errors import TemplateError
from parrot_mq.messages import Segment, SegmentKind

Direction: TypeAlias = Literal["", "input", "output"]
"""What a placeholder says about itself in the text; empty: the signature decides."""

_PLACEHOLDER = re.compile(r"\s*(?:(input|output)\s*:)?\s*([^\W\d]\w*)\s*")


class TemplateWarning(UserWarning):
    """A template works, but not as well as it could."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placeholder:
    """A ``{{name}}``, ``{{input:name}}`` or ``{{output:name}}``; ``position`` is its first brace in the text."""

    name: str
    direction: Direction
    position: int


class Template:
    """A parsed template: literal texts and placeholders in turn.

    ``{{{{`` is the only escape and stands for ``{{``; ``}}`` outside a placeholder is literal, and so is a brace
    directly before a placeholder. Raises ``TemplateError`` with the line and a caret. ``where`` names the function.
    """

    def __init__(self, text: str, where: str = "template") -> None:
        self.text = text
        self.where = where
        self.pieces: tuple[str | Placeholder, ...] = tuple(self._parse())

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """Every placeholder, in order of appearance."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Placeholder))

    def _parse(self) -> list[str | Placeholder]:
        text, pieces, literal, at = self.text, list[str | Placeholder](), list[str](), 0
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(error.start, "a lone surrogate, which UTF-8 cannot carry")
        while (start := text.find("{{", at)) >= 0:
            literal.append(text[at:start])
            if text.startswith("{{{{", start):
                literal.append("{{")
                at = start + 4
            elif text.startswith("{{{", start):
                literal.append("{")
                at = start + 1
            else:
                placeholder, at = self._placeholder(start)
                if constant := "".join(literal):
                    pieces.append(constant)
                literal.clear()
                pieces.append(placeholder)
        literal.append(text[at:])
        if constant := "".join(literal):
            pieces.append(constant)
        return pieces

    def _placeholder(self, start: int) -> tuple[Placeholder, int]:
        end = self.text.find("}}", start + 2)
        if end < 0:
            self.fail(start, "this placeholder is never closed with '}}'; write '{{{{' for two literal braces")
        content = self.text[start + 2 : end]
        match = _PLACEHOLDER.fullmatch(content)
        if match is None:
            self.fail(
                start,
                f"'{{{{{_short(content)}}}}}' is not a placeholder: write {{{{name}}}}, {{{{input:name}}}} or "
                "{{output:name}}, and '{{{{' for two literal braces",
            )
        direction: Direction = "input" if match[1] == "input" else "output" if match[1] == "output" else ""
        return Placeholder(match[2], direction, start), end + 2

    def fail(self, position: int, problem: str) -> NoReturn:
        """Raise ``TemplateError`` for what stands at ``position``."""
        line_start = self.text.rfind("\n", 0, position) + 1
        line_end = self.text.find("\n", position)
        line = self.text[line_start : line_end if line_end >= 0 else None]
        number = self.text.count("\n", 0, position) + 1
        indent = "".join("\t" if character == "\t" else " " for character in line[: position - line_start])
        shown = line.encode("utf-8", "backslashreplace").decode()
        raise TemplateError(f"{self.where}, line {number}: {problem}\n    {shown}\n    {indent}^")

    def segments(self, outputs: Collection[str]) -> tuple[Segment, ...]:
        """Return the segments, given the names that are outputs.

        The first appearance of an output is generated; a later one reads it back, and so is an input.
        """
        generated: set[str] = set()
        found = []
        for piece in self.pieces:
            if isinstance(piece, str):
                found.append(Segment(SegmentKind.CONSTANT, piece))
            elif piece.name not in outputs:
                found.append(Segment(SegmentKind.INPUT, piece.name))
            elif piece.name not in generated:
                if piece.direction == "input":
                    self.fail(piece.position, f"output {piece.name!r} is read here before it is generated")
                generated.add(piece.name)
                found.append(Segment(SegmentKind.OUTPUT, piece.name))
            else:
                if piece.direction == "output":
                    self.fail(
                        piece.position,
                        f"output {piece.name!r} is generated twice; write {{{{input:{piece.name}}}}} to read it back",
                    )
                found.append(Segment(SegmentKind.INPUT, piece.name))
        return tuple(found)


def spaced_outputs(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Return the outputs that a constant ending in a space stands directly before.

    Most BPE vocabularies put the space at the beginning of a word's token, so that a prompt that ends in one keeps
    the model from the tokens it would choose.
    """
    pairs = itertools.pairwise(segments)
    return tuple(
        segment.text
        for before, segment in pairs
        if segment.kind is SegmentKind.OUTPUT and before.kind is SegmentKind.CONSTANT and before.text.endswith(" ")
    )


def _short(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if line == text and len(line) <= 40 else line[:40] + "..."
