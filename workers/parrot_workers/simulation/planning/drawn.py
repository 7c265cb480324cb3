"""One course of a workload: every arrival, length and text, drawn before anything runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from parrot_workers.simulation.planning.workload import (
    Application,
    Chain,
    Chat,
    MapReduce,
    SharedPrompt,
    Size,
    Workload,
)

_SYLLABLES = [a + b + c + " " for a in "bdfgklmnprst" for b in "aeiou" for c in "klmnrst"]
"""Words of four bytes, each of which a simulated engine takes for one token."""


def words(draw: random.Random, num_tokens: int) -> str:
    """Return a text of ``num_tokens`` tokens that begins like no other."""
    return "".join(draw.choices(_SYLLABLES, k=num_tokens))


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one call gets of its own, and how many tokens it answers."""

    text: str
    output_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """An application that comes at ``at_s`` seconds. ``common`` is the text that it shares with others of its kind."""

    at_s: float
    application: Application
    common: str
    parts: tuple[Part, ...]
    """One for each step, map, turn or query; behind the maps one without text, for the reduce."""


def draw_arrivals(workload: Workload, seed: int) -> Sequence[Arrival]:
    """Return the arrivals of a workload in their order; the same for the same seed, whatever serves them."""
    draw = random.Random(f"workload {seed}")
    commons = [_commons(application, draw) for application in workload.applications]
    kinds = range(len(workload.applications))
    weights = [application.weight for application in workload.applications]
    arrivals = []
    at_s = 0.0
    for _ in range(workload.num_applications):
        at_s += draw.expovariate(workload.arrivals_per_s)
        (kind,) = draw.choices(kinds, weights)
        application = workload.applications[kind]
        arrivals.append(Arrival(at_s, application, draw.choice(commons[kind]), tuple(_parts(application, draw))))
    return arrivals


def _commons(application: Application, draw: random.Random) -> list[str]:
    match application:
        case Chat():
            return [words(draw, application.system_tokens)]
        case SharedPrompt():
            return [words(draw, application.shared_tokens) for _ in range(application.num_prompts)]
        case Chain() | MapReduce():
            return [""]


def _parts(application: Application, draw: random.Random) -> list[Part]:
    def part(size: Size, output: Size) -> Part:
        return Part(words(draw, _tokens(size, draw)), _tokens(output, draw))

    match application:
        case Chain():
            return [part(application.chunk_tokens, application.output_tokens) for _ in range(application.steps)]
        case MapReduce():
            maps = [part(application.chunk_tokens, application.output_tokens) for _ in range(application.maps)]
            return [*maps, Part("", _tokens(application.reduce_output_tokens, draw))]
        case Chat():
            return [part(application.user_tokens, application.output_tokens) for _ in range(application.turns)]
        case SharedPrompt():
            return [part(application.query_tokens, application.output_tokens)]


def _tokens(size: Size, draw: random.Random) -> int:
    return size if isinstance(size, int) else draw.randint(*size)
