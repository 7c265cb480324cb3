"""Single steps of the demo pipeline, as training and evaluation need them: a prompt in segments and its answer.

The pipeline tokenises every segment on its own, so a step keeps its segments apart.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from parrot_mq.demo.language import ARTIFACTS, DAYS, NAMES, TOPICS, VERBS
from parrot_mq.demo.meetings import (
    LINES_PER_CHUNK,
    NOTHING,
    NUM_SPEAKERS,
    Commitment,
    Dice,
    extend_notes,
    make_chunk,
    make_items,
    merge_notes,
)
from parrot_mq.demo.prompts import CHAIN, MAP, MAX_REDUCE_ARITY, MIN_REDUCE_ARITY, REDUCE

PLACEHOLDER: Final = re.compile(r"\{\{(\w+)\}\}")
MAX_NOTES: Final = 7
"""Items that a chain step may find in its notes: one more than a demo meeting ever has."""


class Kind(StrEnum):
    """What a step does with its inputs."""

    MAP = "map"
    REDUCE = "reduce"
    CHAIN = "chain"


@dataclass(frozen=True)
class Step:
    """One completion: the segments in front of the output, and the text that should follow."""

    kind: Kind
    segments: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Size:
    """How much a step reads: lines of transcript, parts to merge, items in the notes at hand."""

    num_lines: int = LINES_PER_CHUNK
    arity: int = MAX_REDUCE_ARITY
    num_notes: int = MAX_NOTES


def segments_of(template: str, values: dict[str, str]) -> tuple[str, ...]:
    """Constants and input values of a template in order, up to its output placeholder."""
    pieces = PLACEHOLDER.split(template)
    last = len(pieces) - 2  # the output's name: the template ends with its placeholder
    return tuple(values[piece] if index % 2 else piece for index, piece in enumerate(pieces[:last]) if piece)


def map_prompt(chunk: str) -> tuple[str, ...]:
    """Segments in front of the output of a map step."""
    return segments_of(MAP, {"chunk": chunk})


def chain_prompt(chunk: str, notes: str) -> tuple[str, ...]:
    """Segments in front of the output of a chain step."""
    return segments_of(CHAIN, {"chunk": chunk, "notes": notes})


def reduce_prompt(parts: list[str]) -> tuple[str, ...]:
    """Segments in front of the output of a reduce step over 2 to 8 parts."""
    return segments_of(REDUCE[len(parts)], {f"notes_{number}": part for number, part in enumerate(parts, 1)})


def size_at(level: int, dice: Dice) -> Size:
    """A size of this level of the curriculum: half of the steps are as large as the level allows."""

    def grown(low: int, high: int) -> int:
        return high if dice.chance(0.5) else dice.between(low, high)

    return Size(
        num_lines=grown(1, min(level + 1, LINES_PER_CHUNK)),
        arity=grown(MIN_REDUCE_ARITY, min(level + MIN_REDUCE_ARITY, MAX_REDUCE_ARITY)),
        num_notes=min(level, MAX_NOTES),
    )


def make_step(kind: Kind, dice: Dice, size: Size, confusable: bool = False) -> Step:
    """A random step of this kind and size; if confusable, its items share most of their words."""
    match kind:
        case Kind.MAP:
            return _map_step(dice, size)
        case Kind.CHAIN:
            return _chain_step(dice, size, confusable)
        case Kind.REDUCE:
            return _reduce_step(dice, size, confusable)


def _map_step(dice: Dice, size: Size) -> Step:
    speakers = dice.sample(NAMES, NUM_SPEAKERS)
    items = [make_items(dice, speakers, 1, 1)[dice.below(2)]] if dice.chance(0.7) else [None]
    chunk = make_chunk(dice, speakers, items[0], size.num_lines)
    return Step(Kind.MAP, map_prompt(chunk.text), chunk.note)


def _chain_step(dice: Dice, size: Size, confusable: bool) -> Step:
    speakers = dice.sample(NAMES, NUM_SPEAKERS)
    num_notes = dice.between(0, size.num_notes)
    *noted, key, minor = _items(dice, speakers, num_notes + 1, 1, confusable)
    notes = merge_notes([item.note for item in noted])
    chunk = make_chunk(dice, speakers, dice.pick([key, key, minor, None]), size.num_lines)
    return Step(Kind.CHAIN, chain_prompt(chunk.text, notes), extend_notes(notes, chunk.note))


def _reduce_step(dice: Dice, size: Size, confusable: bool) -> Step:
    """Parts as map steps write them, or as reduce steps do (several items, no minor ones), or both mixed."""
    speakers = dice.sample(NAMES, NUM_SPEAKERS)
    num_key = dice.between(0, min(size.arity, MAX_NOTES))
    spread = dice.pick([1, 1, 2])  # 1: at most one item a part
    items = _items(dice, speakers, num_key, size.arity, confusable)
    keys, minors = items[:num_key], items[num_key:]
    places = sorted(dice.sample(range(size.arity), num_key) if spread == 1 else _places(dice, size.arity, num_key))
    minor_share = dice.pick([0.0, 0.3, 0.7])
    parts = []
    for place in range(size.arity):
        own = [item.note for item, at in zip(keys, places, strict=True) if at == place]
        blank = minors[place].note if dice.chance(minor_share) else NOTHING
        parts.append("\n".join(own) or blank)
    return Step(Kind.REDUCE, reduce_prompt(parts), merge_notes(parts))


def _items(dice: Dice, speakers: list[str], num_key: int, num_minor: int, confusable: bool) -> list[Commitment]:
    items = make_items(dice, speakers, num_key, num_minor)
    if not confusable:
        return items
    verbs, topics, artifacts, days = (
        dice.sample(words, 3) for words in ([base for base, _ in VERBS], TOPICS, ARTIFACTS, DAYS)
    )
    return [
        replace(
            item,
            verb=dice.pick(verbs),
            item=f"{dice.pick(topics)} {dice.pick(artifacts)}",
            day=dice.pick(days),
        )
        for item in items
    ]


def _places(dice: Dice, arity: int, count: int) -> list[int]:
    return [dice.below(arity) for _ in range(count)]
