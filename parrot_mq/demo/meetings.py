"""Meetings made from a seed: a transcript, its chunks, and the notes that a perfect reader takes.

The language is closed (a few hundred words, templated lines) so that a small model can learn it without
error, and the notes are computed, not judged. Only `random.Random.random` is used: of the generator's
methods it is the one whose sequence Python promises for every version.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

from parrot_mq.demo.language import (
    ARTIFACTS,
    CHATTER,
    COMMITMENTS,
    DAYS,
    DISTRACTORS,
    KEY_SIGNS,
    MINOR_SIGNS,
    NAMES,
    TOPICS,
    VERBS,
)

T = TypeVar("T")

LINES_PER_CHUNK: Final = 10
MAX_CHUNK_CHARS: Final = 1000
NUM_CHUNKS: Final = 128
NUM_SPEAKERS: Final = 8
MIN_KEY_ITEMS: Final = 4
MAX_KEY_ITEMS: Final = 6
MIN_MINOR_ITEMS: Final = 24
MAX_MINOR_ITEMS: Final = 40
NOTHING: Final = "Nothing decided."


class Dice:
    """Choices that are the same on every Python version, built on `random.Random.random` alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, bound: int) -> int:
        """A number from 0 to `bound` - 1."""
        return int(self._random() * bound)

    def between(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True in this share of the cases."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One element, each as likely as the others."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different elements in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def demo_stream(seed: int) -> int:
    """Generator seed of the demo meeting `seed`: an odd number, which training never uses."""
    return 2 * _natural(seed) + 1


def training_stream(index: int) -> int:
    """Generator seed of the training example `index`: an even number, which no demo meeting uses."""
    return 2 * _natural(index)


def _natural(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"a seed is zero or more, not {seed}")
    return seed


@dataclass(frozen=True)
class Commitment:
    """What one speaker takes on. `key` says whether it is important enough for the notes."""

    name: str
    verb: str
    item: str
    day: str
    key: bool

    @property
    def note(self) -> str:
        """The line that a map step is expected to write."""
        deed = f"{self.name} will {self.verb} the {self.item} by {self.day}."
        return f"- {deed}" if self.key else f"({deed})"

    def line(self, dice: Dice) -> str:
        """The commitment as it is spoken. The same deed is spoken in many ways."""
        said = dice.pick(COMMITMENTS).format(verb=self.verb, item=self.item, day=self.day)
        return f"{self.name}: {said} {dice.pick(KEY_SIGNS if self.key else MINOR_SIGNS)}"


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a transcript with at most one commitment among them."""

    lines: tuple[str, ...]
    commitment: Commitment | None

    @property
    def text(self) -> str:
        """The lines as a prompt holds them."""
        return "\n".join(self.lines)

    @property
    def note(self) -> str:
        """What a map step is expected to answer for this chunk."""
        return self.commitment.note if self.commitment else NOTHING


@dataclass(frozen=True)
class Meeting:
    """A transcript of 128 chunks (more than 20,000 tokens of the demo model) and its expected notes."""

    seed: int
    parts: tuple[Chunk, ...]

    @cached_property
    def transcript(self) -> str:
        """All lines of the meeting."""
        return "\n".join(self.chunks)

    @property
    def chunks(self) -> tuple[str, ...]:
        """The transcript as `chunks_of` cuts it."""
        return tuple(part.text for part in self.parts)

    @property
    def expected_lines(self) -> tuple[str, ...]:
        """The expected answer of each map step."""
        return tuple(part.note for part in self.parts)

    @property
    def expected_notes(self) -> str:
        """The expected end of the map-reduce and of the chain."""
        return merge_notes(self.expected_lines)


def make_meeting(seed: int, num_chunks: int = NUM_CHUNKS) -> Meeting:
    """The demo meeting of this seed. No training example shares its random stream.

    A meeting of fewer chunks than it has items carries an item in every chunk.
    """
    dice = Dice(demo_stream(seed))
    speakers = dice.sample(NAMES, NUM_SPEAKERS)
    num_key = min(dice.between(MIN_KEY_ITEMS, MAX_KEY_ITEMS), num_chunks)
    num_minor = min(dice.between(MIN_MINOR_ITEMS, MAX_MINOR_ITEMS), num_chunks - num_key)
    places = dice.sample(range(num_chunks), num_key + num_minor)
    items: dict[int, Commitment] = dict(zip(places, make_items(dice, speakers, num_key, num_minor), strict=True))
    return Meeting(seed, tuple(make_chunk(dice, speakers, items.get(place)) for place in range(num_chunks)))


def make_items(dice: Dice, speakers: Sequence[str], num_key: int, num_minor: int) -> list[Commitment]:
    """Commitments, the important ones first. Their speakers differ: each speaker makes one important promise."""
    leads = dice.sample(speakers, num_key)
    others = [dice.pick(speakers) for _ in range(num_minor)]
    return [_commitment(dice, name, place < num_key) for place, name in enumerate([*leads, *others])]


def _commitment(dice: Dice, name: str, key: bool) -> Commitment:
    return Commitment(name, dice.pick(VERBS)[0], _item(dice), dice.pick(DAYS), key)


def _item(dice: Dice) -> str:
    return f"{dice.pick(TOPICS)} {dice.pick(ARTIFACTS)}"


def make_chunk(
    dice: Dice, speakers: Sequence[str], commitment: Commitment | None, num_lines: int = LINES_PER_CHUNK
) -> Chunk:
    """Chatter of `num_lines` lines with the commitment, if any, at a random place."""
    lines = [_chatter(dice, speakers) for _ in range(num_lines - (commitment is not None))]
    if commitment:
        lines.insert(dice.below(num_lines), commitment.line(dice))
    return Chunk(tuple(lines), commitment)


def _chatter(dice: Dice, speakers: Sequence[str]) -> str:
    """A line that commits nobody; one in two looks like a commitment, some even with a sign of weight."""
    name, other = dice.sample(speakers, 2)
    verb, past = dice.pick(VERBS)
    near_miss = dice.chance(0.5)
    form = dice.pick(DISTRACTORS if near_miss else CHATTER)
    said = form.format(name=other, verb=verb, past=past, item=_item(dice), day=dice.pick(DAYS))
    if near_miss and dice.chance(0.4):
        said += " " + dice.pick(KEY_SIGNS + MINOR_SIGNS)
    return f"{name}: {said}"


def merge_notes(parts: Sequence[str]) -> str:
    """What a reduce step is expected to answer: the important items of all parts in order, one a line."""
    kept = [line for part in parts for line in part.split("\n") if line.startswith("- ")]
    return "\n".join(kept) or NOTHING


def extend_notes(notes: str, line: str) -> str:
    """What a chain step is expected to answer, from the notes so far and the note of the next chunk."""
    return merge_notes((notes, line))


def chunks_of(text: str, max_lines: int = LINES_PER_CHUNK, max_chars: int = MAX_CHUNK_CHARS) -> list[str]:
    """Cut any text into chunks of at most `max_lines` lines and `max_chars` characters, blank lines dropped.

    Lines stay whole unless one alone is too long; that one is cut at spaces, or inside a word longer than
    a chunk. A demo transcript is cut back into exactly the chunks it was made of.
    """
    if max_lines < 1 or max_chars < 1:
        raise ValueError("a chunk holds at least one line and one character")
    chunks: list[str] = []
    lines: list[str] = []
    for line in (piece for raw in text.splitlines() for piece in _pieces(raw.strip(), max_chars)):
        if lines and (len(lines) == max_lines or len("\n".join([*lines, line])) > max_chars):
            chunks.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [*chunks, "\n".join(lines)] if lines else chunks


def _pieces(line: str, max_chars: int) -> list[str]:
    pieces = []
    while len(line) > max_chars:
        cut = line.rfind(" ", 1, max_chars + 1)
        cut = cut if cut > 0 else max_chars
        pieces.append(line[:cut].rstrip())
        line = line[cut:].lstrip()
    return [*pieces, line] if line else pieces
