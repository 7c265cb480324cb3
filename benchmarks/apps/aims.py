"""Which aims hold, each against every baseline that it may be held against; and what could hold at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.apps.bench import FULL, REAL
from benchmarks.apps.drivers import MEAN_ROUND_TRIP_S
from benchmarks.apps.floor import Floor, floor_of
from benchmarks.apps.reference import (
    AIMS,
    CHAT_LOSS,
    CHAT_RATIOS,
    MAP_REDUCE_LOSS,
    PUBLISHED,
    STRONGEST,
    Aim,
)
from benchmarks.apps.rows import Row
from benchmarks.apps.systems import OURS
from benchmarks.apps.tables import Found, header, line

WITH_FLOOR = ("chain", "chain-background", "concurrent-chains", "map-reduce", "multi-agent")
"""Experiments whose applications have a floor: a graph, and an engine for all of it."""
HEAD = """Each aim is a ratio of the reference's, and each column one baseline that it may be held against:

- **same engine**: clients on engines like ours, held to what "against" says (latency-6144: 6144 tokens at once);
- **same engine, cached**: the stronger of latency- and throughput-centric clients on engines like ours that keep
  prefixes: what the issue asks for;
- **reference's baseline**: clients of the engine that the reference compared itself with, held to what its artifact
  held it to, simulated (how near that is: see below);
- **its published seconds**: what that baseline took, by the artifact, over what ours takes in simulation.

"at most": no scheduler could do better on our engines, by [the floor](#what-can-be-reached) of the point.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """An aim against one baseline: ``ratio`` is what was measured, ``most`` what the floor allows."""

    ratio: float
    most: float | None

    def cell(self, aimed: float) -> str:
        if self.ratio >= aimed:
            return f"{self.ratio:.2f} yes"
        beyond = f", at most {self.most:.2f}" if self.most is not None and self.most < aimed else ""
        return f"{self.ratio:.2f} **no**{beyond}"


def held(found: Found, aim: Aim) -> tuple[Held | None, Held | None, Held | None, Held | None]:
    """Return how an aim stands against the named baseline, the stronger cached one, the reference's, its seconds.

    None: not measured, or the reference has nothing of the kind.
    """
    own = found.get((aim.experiment, aim.point, aim.mode, OURS, ""))
    if own is None:
        return None, None, None, None
    floor = floor_at(aim) if aim.mode == "simulated" else None

    def against(seconds: float | None) -> Held | None:
        if seconds is None:
            return None
        return Held(seconds / own["seconds_median"], seconds / floor.seconds if floor else None)

    published = PUBLISHED.get((aim.experiment, aim.point)) if aim.mode == "simulated" else None
    return (
        against(_fastest(found, aim, aim.named)),
        against(_fastest(found, aim, STRONGEST)),
        against(_fastest(found, aim, (aim.reference,))),
        against(published.baselines_s.get(aim.reference) if published else None),
    )


def is_missed(found: Found, aim: Aim) -> bool:
    """Whether an aim does not hold against some baseline."""
    return any(one is not None and one.ratio < aim.ratio for one in held(found, aim))


def _fastest(found: Found, aim: Aim, systems: Sequence[str]) -> float | None:
    rows = [found.get((aim.experiment, aim.point, aim.mode, system, "")) for system in systems]
    return min((row["seconds_median"] for row in rows if row), default=None)


def aims_table(found: Found) -> str:
    """Return all aims, by experiment."""
    columns = ["same engine", "same engine, cached", "reference's baseline", "its published seconds"]
    lines = header(["what", "aim", "against", *columns])
    for aim in AIMS:
        named = "the stronger cached" if aim.named == STRONGEST else " or ".join(aim.named)
        stands = held(found, aim)
        if stands[0] is None and stands[1] is None:
            cells = ["not measured", "not measured", "-", "-"]
        else:
            cells = ["-" if one is None else one.cell(aim.ratio) for one in stands]
        lines.append(line([f"{aim.experiment}, {aim.point}, {aim.mode}", f"{aim.ratio:g}", named, *cells]))
    return HEAD + "\n" + "\n".join([*lines, "", *mixed_aims(found)]) + "\n"


def mixed_aims(found: Found) -> list[str]:
    """Return a line for each aim of the mixed workload that is not about seconds."""
    lines = []
    for mode in ("simulated", "real"):
        both, chats, work = (
            found.get(("mixed", point, mode, OURS, "")) for point in ("both", "chats alone", "map-reduce alone")
        )
        if both and chats and work:
            slower = both["chat_tpot_ms"] / chats["chat_tpot_ms"] - 1
            less = 1 - both["map_reduce_tokens_per_s"] / work["map_reduce_tokens_per_s"]
            lines += [
                f"- mixed, {mode}: chats take {slower:+.1%} a token beside map-reduces (aim: at most "
                f"{CHAT_LOSS:+.0%}): " + ("yes" if slower <= CHAT_LOSS else "**no**"),
                f"- mixed, {mode}: map-reduces lose {less:.1%} of their tokens/s beside chats (aim: at most "
                f"{MAP_REDUCE_LOSS:.0%}): " + ("yes" if less <= MAP_REDUCE_LOSS else "**no**"),
            ]
        for name, system, aim in CHAT_RATIOS:
            other = found.get(("mixed", "both", mode, system, ""))
            if both and other:
                ratio = other[name] / both[name]
                holds = "yes" if ratio >= aim else "**no**"
                lines.append(f"- mixed, {mode}: {system}'s {name} is {ratio:.2f} x ours (aim: {aim:g}): {holds}")
    return lines


# What can be reached --------------------------------------------------------------------------------------------------


def floor_at(aim: Aim) -> Floor | None:
    """Return the floor of an aim's point, None where there is none. Of real runs only its depth means anything."""
    scale = REAL if aim.mode == "real" else FULL
    return floor_of(aim.experiment, aim.point, scale) if aim.experiment in WITH_FLOOR else None


def reach_table(found: Found) -> str:
    """Return, by point, the floor and what saving round trips alone would give."""
    columns = ["calls in a row", "each / round trip", "ours", "floor", "best cached", "x", "x by the network alone"]
    columns.append("x at most")
    lines = header(["what", *columns])
    for aim, own, best in _measured(found):
        floor = floor_at(aim)
        if floor is None:
            continue
        saved_s = (floor.depth - 1) * MEAN_ROUND_TRIP_S
        is_real = aim.mode == "real"
        each_s = (own["seconds_median"] - MEAN_ROUND_TRIP_S) / floor.depth
        cells = [
            f"{floor.depth:.3g}",
            f"{each_s / MEAN_ROUND_TRIP_S:.1f}",
            f"{own['seconds_median']:.2f} s",
            "-" if is_real else f"{floor.seconds:.2f} s",
            f"{best:.2f} s",
            f"{best / own['seconds_median']:.2f}",
            f"{best / (best - saved_s):.2f}" if best > saved_s else "-",
            "-" if is_real else f"{best / floor.seconds:.2f}",
        ]
        lines.append(line([f"{aim.experiment}, {aim.point}, {aim.mode}", *cells]))
    return REACH_HEAD + "\n" + "\n".join(lines) + "\n"


REACH_HEAD = """*Floor*: what an application takes alone on our engine if nothing ever waits: as many decode steps as
the longest path of calls has tokens, what each sequence adds to its steps, every different beginning of a prompt
computed once, less what steps hide of that by the cost model, and the shortest round trip. *Best cached* is the
stronger baseline with prefix caching on the same engine. *By the network alone*: its ratio to itself without the round
trips between calls; *at most*: to the floor. What a scheduler can save besides the network lies between the two. Where
many applications run at once the floor is far below what is possible. *Each / round trip*: how long a call on the
longest path takes of our time, in round trips; where it is little, the network weighs much.
"""


def _measured(found: Found) -> Iterator[tuple[Aim, Row, float]]:
    seen: set[tuple[str, str, str]] = set()
    for aim in AIMS:
        own = found.get((aim.experiment, aim.point, aim.mode, OURS, ""))
        best = _fastest(found, aim, STRONGEST)
        key = aim.experiment, aim.point, aim.mode
        if own and best is not None and key not in seen:
            seen.add(key)
            yield aim, own, best


# How near the simulated reference is ----------------------------------------------------------------------------------


def fit_table(found: Found) -> str:
    """Return the reference's seconds beside those of its baseline as simulated here, and beside ours."""
    lines = header(["what", "system", "published", "simulated", "simulated / published"])
    for (experiment, label), published in PUBLISHED.items():
        own = [(OURS, published.own_s, "the reference's own, beside ours")]
        others = [(name, seconds, f"its baseline, {name}") for name, seconds in published.baselines_s.items()]
        for system, seconds, what in [*others, *own]:
            row = found.get((experiment, label, "simulated", system, ""))
            if row:
                measured = row["seconds_median"]
                cells = [what, f"{seconds:.1f} s", f"{measured:.1f} s", f"{measured / seconds:.2f}"]
                lines.append(line([f"{experiment}, {label}", *cells]))
    return "\n".join(lines) + "\n"
