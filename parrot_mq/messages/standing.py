"""Why a request sits where it does: what the scheduler says of it when it is placed, or when somebody asks."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Self

import orjson

from parrot_mq.messages.states import RequestState


class Refusal(enum.StrEnum):
    """Why an engine does not take a request now."""

    DEAD = "dead"
    """It has no heartbeat any more."""
    STARTING = "starting"
    DRAINING = "draining"
    SUSPENDED = "suspended"
    """The store refused the last dispatch to it: nothing more until its next heartbeat."""
    FULL = "full"
    """Its slots are taken, and none of them comes free within about two steps."""
    MEMORY = "memory"
    """Its free KV memory does not hold the request."""
    BOUND = "bound"
    """The request would break the time per token that was promised to one that runs there, or to itself."""
    PACED = "paced"
    """It holds throughput work off for now, for the sake of urgent requests."""


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """What a request is for: an objective, and whom it serves.

    ``objective`` is the kind, "" where nobody has asked for anything yet; ``objective_of`` the variable that it was
    asked of, and deduced from. ``group`` is the task group ("" none), with ``group_size`` members in all.
    """

    objective: str = ""
    objective_of: str = ""
    group: str = ""
    group_size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """How a request came to its engine: kept with the request when it is dispatched.

    ``reason`` is one of the policy's, or ``lane`` where a script dispatched it without asking. ``predicted_ms`` is when
    it was predicted to be done there, from then; ``considered`` the same of the other engines that were compared, the
    earliest first, at most ``MAX_CONSIDERED``.
    """

    reason: str
    predicted_ms: float = 0.0
    considered: tuple[tuple[str, float], ...] = ()
    aim: Aim = dataclasses.field(default_factory=Aim)

    def to_json(self) -> str:
        """Return it as one line of JSON, defaults left out."""
        data: dict[str, Any] = {"reason": self.reason}
        if self.predicted_ms:
            data["ms"] = round(self.predicted_ms, 1)
        if self.considered:
            data["considered"] = [[engine, round(ms, 1)] for engine, ms in self.considered]
        data |= _given(self.aim)
        return orjson.dumps(data).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse what ``to_json`` wrote."""
        data = orjson.loads(text)
        considered = tuple((engine, ms) for engine, ms in data.get("considered", ()))
        return cls(data["reason"], data.get("ms", 0.0), considered, _aim(data))


MAX_CONSIDERED = 4
"""Other engines that are kept with a placement: it is stored with each request."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What an engine that serves a request's model says to it now. ``refusal`` None: it would take it.

    ``predicted_ms`` is when it would be done there, 0 where that cannot be said.
    """

    id: str
    refusal: Refusal | None
    predicted_ms: float = 0.0
    num_outstanding: int = 0
    max_num_seqs: int = 0


MAX_ENGINES = 16
"""Engines in one answer: those that would take the request first, then those that are done earliest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What the leading scheduler says of a request when it is asked.

    ``state`` is the state that the scheduler knows. Of a ready request also its place: ``num_before`` requests of its
    tenant stand before it, ``num_others`` of other tenants wait as well (tenants take turns by tokens); ``held`` while
    its submit is not complete; ``behind`` is an equal request that stands in line for it too. ``engines`` are those
    that serve its model, of ``num_engines`` in all. ``engine`` is where it is, or, while it waits for inputs, where it
    is planned to go; ``planned_tokens`` of its prompt are, or are being, prepared there. ``ready_in_ms`` is how long
    its inputs are expected to take; 0 where nobody can tell.
    """

    request: str
    state: RequestState
    aim: Aim = dataclasses.field(default_factory=Aim)
    engine: str = ""
    held: bool = False
    behind: str = ""
    num_before: int = 0
    num_others: int = 0
    num_engines: int = 0
    engines: tuple[EngineAnswer, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    planned_tokens: int = 0
    ready_in_ms: float = 0.0

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return orjson.dumps(dataclasses.asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse what ``to_json`` wrote."""
        data = orjson.loads(text)
        engines = tuple(
            EngineAnswer(**(answer | {"refusal": Refusal(answer["refusal"]) if answer["refusal"] else None}))
            for answer in data.pop("engines")
        )
        aim = _aim(data.pop("aim"))
        return cls(**(data | {"state": RequestState(data["state"]), "aim": aim, "engines": engines}))


_AIM = tuple(field.name for field in dataclasses.fields(Aim))


def _aim(data: dict[str, Any]) -> Aim:
    return Aim(**{name: data[name] for name in _AIM if name in data})


def _given(aim: Aim) -> dict[str, Any]:
    return {name: value for name in _AIM if (value := getattr(aim, name))}
