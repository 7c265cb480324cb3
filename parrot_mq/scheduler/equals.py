"""Equal requests between the ready queue and the engines: one is placed and charged, the others go along."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from parrot_mq.messages import EngineState
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import (
    EngineLoad,
    Flights,
    Placement,
    Plan,
    ReadyQueue,
    Reason,
    call_digest,
    flight_digest,
)

MAX_TOGETHER = 512
"""Requests in one plan that go where an equal one is."""


class Equals:
    """Queues and charges requests so that equal ones count once. Off (``is_on``), each counts for itself."""

    def __init__(self, ready: ReadyQueue, engines: Mapping[str, EngineLoad], *, is_on: bool) -> None:
        self._ready = ready
        self._engines = engines
        self.flights = Flights()
        self.is_on = is_on

    def __contains__(self, node: RequestNode) -> bool:
        """Whether a ready request waits for a decision, be it in the queue itself or behind an equal one."""
        return node in self._ready or node in self.flights

    def head(self, node: RequestNode) -> RequestNode | None:
        """Return the request in the ready queue that ``node`` is served with: itself, or an equal one."""
        return node if node in self._ready else self.flights.stands_for(node)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be decided."""
        return not len(self._ready) and not self.flights.is_boarding

    def submitted(self, node: RequestNode, spec: dict[str, Any]) -> None:
        """Note what is fixed about a request from its submit on."""
        if self.is_on:
            node.call_digest = call_digest(spec)
        else:
            node.flight = ""

    def describe(self, node: RequestNode) -> None:
        """Find out what a request is equal to, once its inputs are known. It must not be queued."""
        if self.is_on:
            node.flight = flight_digest(node)

    def put(self, node: RequestNode) -> None:
        """Queue a ready request under its ``key_ms``, or have it wait behind an equal one; anew if it is there."""
        enters, leaves = self.flights.wait(node)
        if leaves is not None:
            self._ready.discard(leaves)
        if enters is not None:
            self._ready.put(enters)

    def discard(self, node: RequestNode) -> None:
        """Take a request out without serving it; one that waits behind it may take its place."""
        self._ready.discard(node)
        if (successor := self.flights.unwait(node)) is not None:
            self._ready.put(successor)

    def board(self) -> Plan:
        """Place what goes where an equal request is, be the engine full or not; ``more``: others are to be decided."""
        boarded, queued = self.flights.board(MAX_TOGETHER, self._is_open)
        for node in queued:
            self._ready.put(node)
        placements = tuple(Placement(node, self._engines[engine_id], Reason.FLIGHT) for node, engine_id in boarded)
        return Plan(placements, more=bool(queued) or self.flights.is_boarding)

    def depart(self, plan: Plan) -> Plan:
        """Take in what the policy has placed and charged; return the plan with those that go along."""
        for placement in plan.placements:
            if not self.flights.depart(placement.request, placement.engine.id):
                placement.engine.discharge(placement.request.id)
        together = self.board()
        placements = (*plan.placements, *together.placements)
        return dataclasses.replace(plan, placements=placements, more=plan.more or together.more)

    def charge(self, node: RequestNode, load: EngineLoad, now_ms: float) -> bool:
        """A request turned out to be on an engine; False if nobody is charged for it, since an equal one runs there.

        It waits here no more; that it may stand in the ready queue is for the caller to end.
        """
        is_charged = self.flights.depart(node, load.id)
        if is_charged:
            load.charge(node, now_ms)
        return is_charged

    def discharge(self, node: RequestNode) -> None:
        """A request is on its engine no more; if it was charged for others, one of them is from now on."""
        successor = self.flights.leave(node)
        load = self._engines.get(node.engine)
        if load is not None:
            load.discharge(node.id)
            if successor is not None:
                load.charge(successor, 0.0)

    def outstanding(self, engine_id: str) -> list[str]:
        """Return the requests that were dispatched to an engine and are not finished, charged or not."""
        load = self._engines.get(engine_id)
        return [*(load.outstanding if load is not None else ()), *self.flights.uncharged(engine_id)]

    def _is_open(self, engine_id: str) -> bool:
        load = self._engines.get(engine_id)
        record = load.record if load is not None and not load.suspended else None
        return record is not None and record.state is EngineState.READY
