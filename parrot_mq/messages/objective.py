"""Performance objectives that a reader of a variable asks for (Parrot, OSDI'24, section 5.2)."""

from __future__ import annotations

import dataclasses
import enum

import orjson


class ObjectiveKind(enum.StrEnum):
    """What is to be small; from the least to the most strict."""

    THROUGHPUT = "throughput"
    TPOT = "tpot"
    TTFT = "ttft"
    LATENCY = "latency"
    DEADLINE = "deadline"


_RANK = {kind: rank for rank, kind in enumerate(ObjectiveKind, start=1)}
_SCALE = 10**13
"""Larger than any epoch time in milliseconds; rank * _SCALE stays exact in a double."""


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """An objective with its bound.

    ``value_ms`` is the target in milliseconds: time to first token for TTFT, time per output token for TPOT, and the
    time that is left, counted from when it is stated, for DEADLINE (``at_ms`` then is the epoch time it falls due).
    0 means as small as possible.
    """

    kind: ObjectiveKind
    value_ms: int = 0
    at_ms: int = 0

    @property
    def strictness(self) -> int:
        """A number that grows with strictness: the store keeps the strictest objective stated so far."""
        rank = _RANK[self.kind] * _SCALE
        bound = self.at_ms or self.value_ms
        return rank + (_SCALE - 1 - bound if bound else 0)

    def to_json(self) -> str:
        """Return the objective as one line of JSON, its defaults left out."""
        data: dict[str, object] = {"kind": self.kind.value}
        if self.value_ms:
            data["value_ms"] = self.value_ms
        if self.at_ms:
            data["at_ms"] = self.at_ms
        return orjson.dumps(data).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Objective:
        """Parse what ``to_json`` wrote."""
        data = orjson.loads(text)
        return cls(ObjectiveKind(data["kind"]), data.get("value_ms", 0), data.get("at_ms", 0))


LATENCY = Objective(ObjectiveKind.LATENCY)
"""The end-to-end time of this variable matters (the default of ``get``)."""

THROUGHPUT = Objective(ObjectiveKind.THROUGHPUT)
"""Only the work done per second matters; let it batch."""

TTFT = Objective(ObjectiveKind.TTFT)
"""The time to the first token matters (the default of ``stream``)."""

TPOT = Objective(ObjectiveKind.TPOT)
"""The time between output tokens matters."""


def Deadline(seconds: float) -> Objective:  # noqa: N802 - reads as a constructor beside LATENCY and THROUGHPUT
    """Return the objective of being done within ``seconds`` from when it is stated."""
    if not seconds > 0:
        raise ValueError(f"a deadline must be positive, got {seconds} s")
    return Objective(ObjectiveKind.DEADLINE, value_ms=max(1, round(seconds * 1000)))


def stricter(first: Objective | None, second: Objective | None) -> Objective | None:
    """Return the stricter of two objectives, the first of equal ones. (Deadlines are counted from when they are stated,
    so that a second one is never the same.)
    """
    if first is None or second is None:
        return first or second
    if second.kind is ObjectiveKind.DEADLINE:
        return second
    return second if second.strictness > first.strictness else first
