"""The demo's application: the notes of a long meeting, by map-reduce and as a chain, as semantic functions.

Nothing is awaited while the graph is built: 147 calls of a map-reduce over 128 chunks go out as one submit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import parrot_mq as P
from parrot_mq.demo.meetings import NOTHING
from parrot_mq.demo.prompts import CHAIN, MAP, MAX_REDUCE_ARITY, REDUCE

T = TypeVar("T")

MAX_NOTE_TOKENS = 160
"""Seven notes of the demo model; a longer answer of another model is cut."""

NOTE = {"summary": P.output(max_tokens=MAX_NOTE_TOKENS)}

note_chunk = P.SemanticFunction.from_template(MAP, name="note_chunk", outputs=NOTE)
"""A chunk of the transcript -> its note."""

merge_notes = {
    arity: P.SemanticFunction.from_template(template, name="merge_notes", outputs=NOTE)
    for arity, template in REDUCE.items()
}
"""Two to eight partial notes -> one, by how many there are."""

extend_notes = P.SemanticFunction.from_template(CHAIN, name="extend_notes", outputs=NOTE)
"""A chunk and the notes so far -> the notes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """The calls of one kind that may run together; they are named as the progress display shows them."""

    name: str
    variables: tuple[P.SemanticVariable, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A submitted application: its stages in order, and the variable that it is all for."""

    stages: tuple[Stage, ...]
    result: P.SemanticVariable


def map_reduce(session: P.Session, chunks: Sequence[str]) -> Graph:
    """Note every chunk on its own, then merge the notes, eight at a time, until one is left."""
    level = [note_chunk(chunk, session=session) for chunk in chunks]
    stages = [Stage("map", tuple(level))]
    while len(level) > 1:
        groups = groups_of(level)
        level = [merge_notes[len(group)](*group, session=session) if len(group) > 1 else group[0] for group in groups]
        merged = tuple(note for note, group in zip(level, groups, strict=True) if len(group) > 1)
        stages.append(Stage(f"reduce {len(stages)}", merged))
    return Graph(tuple(stages), level[0])


def chain(session: P.Session, chunks: Sequence[str]) -> Graph:
    """Read the chunks one after the other, each with the notes so far."""
    notes: P.SemanticVariable | str = NOTHING
    steps: list[P.SemanticVariable] = []
    for chunk in chunks:
        notes = extend_notes(chunk, notes, session=session)
        steps.append(notes)
    return Graph((Stage("chain", tuple(steps)),), steps[-1])


def groups_of(items: Sequence[T]) -> list[Sequence[T]]:
    """Cut ``items`` into groups of at most eight, in order."""
    return [items[start : start + MAX_REDUCE_ARITY] for start in range(0, len(items), MAX_REDUCE_ARITY)]
