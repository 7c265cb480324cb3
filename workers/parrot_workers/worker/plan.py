"""What the scheduler says about an assignment."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import orjson

from parrot_mq.messages import ObjectiveKind


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Hints beside an assignment. Hints never decide correctness, so what cannot be read counts as absent.

    ``rank``: lower starts earlier. ``prefix``: digests of the prompt's variable boundaries, shortest first, by which
    the scheduler recognises what an engine has in its cache. ``group``: the task group of which ``group_size`` members
    were sent to this engine at once. ``flight``: the digest that equal deterministic requests
    have in common; empty if it is to run by itself; None if the scheduler does not say.
    """

    rank: float = 0.0
    objective: ObjectiveKind = ObjectiveKind.LATENCY
    prefix: tuple[str, ...] = ()
    group: str = ""
    group_size: int = 0
    flight: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse an assignment's ``plan_json``."""
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError:
            return cls()
        if not isinstance(data, dict):
            return cls()
        rank, prefix, size = data.get("rank", 0.0), data.get("prefix", ()), data.get("group_size", 0)
        return cls(
            rank=float(rank) if isinstance(rank, int | float) else 0.0,
            objective=objective_kind(data.get("objective")),
            prefix=tuple(map(str, prefix)) if isinstance(prefix, list) else (),
            group=str(data.get("group", "")),
            group_size=size if isinstance(size, int) else 0,
            flight=str(data["flight"]) if "flight" in data else None,
        )


def objective_kind(data: Any) -> ObjectiveKind:
    """Return the kind of an objective given as its name or as its JSON object; LATENCY for anything else."""
    name = data.get("kind") if isinstance(data, dict) else data
    return _KINDS.get(str(name), ObjectiveKind.LATENCY)


def control_objective(text: str) -> ObjectiveKind:
    """Return the kind that a control message's text (an objective's name, or its JSON) speaks of."""
    try:
        return objective_kind(orjson.loads(text))
    except orjson.JSONDecodeError:
        return objective_kind(text)


_KINDS = {kind.value: kind for kind in ObjectiveKind}
