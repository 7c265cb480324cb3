"""Requests as applications see them, and the inputs that they wait for."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import Aim, EngineRecord, Placed, RequestState, Standing, VariableState


@dataclasses.dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request as it stands: which function, how far it is, where it runs.

    ``attempt`` counts its starts, ``need`` the inputs that it waits for; times are epoch milliseconds, 0 for what has
    not happened. ``placed`` says what chose its engine, ``standing`` what the leading scheduler says of an
    unfinished one; without the latter, ``serving`` are the engines of its model by their own word (of a ready one).
    """

    id: str
    function: str
    call: str
    state: RequestState
    engine: str
    attempt: int
    need: int
    inputs: tuple[str, ...]
    output: str
    created_ms: int = 0
    ready_ms: int = 0
    queued_ms: int = 0
    started_ms: int = 0
    done_ms: int = 0
    model: str = ""
    placed: Placed | None = None
    standing: Standing | None = None
    serving: tuple[EngineRecord, ...] = ()

    @property
    def aim(self) -> Aim:
        """What it is for, as far as it is known."""
        aims = [told.aim for told in (self.standing, self.placed) if told is not None]
        return next((aim for aim in aims if aim.objective), Aim())


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingInput:
    """An unresolved input, the request that produces it (None: it must be set by hand), and what that one waits for.

    ``shown_above``: what it waits for stands with an earlier input that is made by the same request. ``parameter`` is
    what the function that reads it calls it.
    """

    id: str
    name: str
    state: VariableState
    producer: RequestInfo | None
    waits_for: tuple[WaitingInput, ...] = ()
    shown_above: bool = False
    parameter: str = ""
