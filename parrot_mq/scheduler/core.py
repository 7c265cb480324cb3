"""What the leading scheduler knows, and what it makes of news: graph, ready queue, engines. No I/O, no clock.

Times are handed in: ``now_s`` of a monotonic clock for what is measured here, epoch milliseconds for what comes from
the store.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

from parrot_mq.messages import EngineRecord, FunctionRecord, LengthHistogram, Objective, ObjectiveKind, RequestState
from parrot_mq.scheduler.ahead import Ahead
from parrot_mq.scheduler.equals import Equals
from parrot_mq.scheduler.estimates import Estimates
from parrot_mq.scheduler.fold import fold
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.holds import Holds
from parrot_mq.scheduler.lanes import Lanes
from parrot_mq.scheduler.models import Models
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.scheduler.objectives import Objectives
from parrot_mq.scheduler.policy import EngineLoad, Fleet, Plan, ReadyQueue, decide, order_key_ms
from parrot_mq.scheduler.templates import TemplateKey
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store.records import Lane
from parrot_mq.store.scheduler import IntakeEntry


class Core:
    """The state of one term of leadership. Everything in it can be rebuilt from Redis (see ``recovery``)."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.graph = Graph()
        self.ready = ReadyQueue()
        self.engines = Fleet(settings.queue_depth_steps, affinity=settings.prefix_affinity)
        self.equals = Equals(self.ready, self.engines, is_on=settings.single_flight)
        self._estimates = Estimates()
        self.templates, self.lengths = self._estimates.templates, self._estimates.lengths
        self._objectives = Objectives(settings, self.graph, self._estimates.duration_ms)
        self.holds = Holds(settings.batch_hold_ms / 1000)
        self.models = Models(settings.model_grace_s)
        self.lanes = Lanes(settings.lane_credits)
        self.doomed: list[RequestNode] = []
        """Requests of models known to be unknown, for the shell to reject."""
        self.upgraded: deque[RequestNode] = deque()
        """Dispatched requests whose objective became stricter, for the shell to tell their engines."""
        self.groups_siblings = settings.sibling_admission
        """Whether engines are told which requests to admit together."""
        self.ahead = Ahead(settings, self.graph, self.engines, self.templates, self._estimates.duration_ms)

    # News from the intake ---------------------------------------------------------------------------------------------

    def add(
        self, spec: dict[str, Any], arrival: Arrival, rev: int, state: RequestState, now_s: float
    ) -> RequestNode | None:
        """Take in a submitted request; None if it is known. It is queued by ``make_ready``, not here."""
        node = self.graph.add(spec, arrival, rev, state)
        if node is None:
            return None
        self._estimates.expect(node)
        self.templates.submitted(node)  # looked up from now on: while it waits, its lengths count on critical paths
        self.equals.submitted(node, spec)
        if node.model and self.models.asked(node, now_s):
            self.doomed.append(node)
        self.ahead.added(node)
        before = [v.producer.before_ms + self.duration_ms(v.producer) for v in node.inputs if v.producer is not None]
        node.before_ms = max(before, default=0.0)
        if node.output.consumers:  # its output was made, and read by requests, before it was submitted
            self._changed(self._objectives.inherit(node))
        return node

    def fold(self, entry: IntakeEntry, now_s: float) -> None:
        """Take in an entry of the intake."""
        fold(self, entry, now_s)

    def release_held(self, now_s: float) -> None:
        """Queue the requests of batches that were held long enough."""
        for node in self.holds.due(now_s):
            self.enqueue(node)

    def rejects(self, now_s: float) -> list[RequestNode]:
        """Return the requests whose model is known to be unknown by now, for the shell to reject."""
        doomed = {node.id: node for node in (*self.doomed, *self.models.doomed(now_s))}
        self.doomed.clear()
        return list(doomed.values())

    def make_ready(self, node: RequestNode, rev: int) -> None:
        """A request became ready, or was given back by an engine. Old news is ignored."""
        if rev <= node.rev:
            return
        node.rev = rev
        self._undispatch(node)
        node.state = RequestState.READY
        self.enqueue(node)

    def make_waiting(self, node: RequestNode, rev: int) -> None:
        """A request failed and waits for its back-off. Old news is ignored."""
        if rev <= node.rev:
            return
        node.rev = rev
        self._undispatch(node)
        self.equals.discard(node)
        node.state = RequestState.WAITING

    def resolve(self, variable_id: str, digest: str, size_bytes: int) -> None:
        """A variable has its value, or an error (without a digest)."""
        variable = self.graph.resolve(variable_id, digest, size_bytes)
        if variable is not None:
            self.ahead.resolved(variable)

    def finish(self, node: RequestNode, num_output_tokens: int = 0) -> None:
        """A request is done, dead or cancelled: forget it."""
        self.lengths.observe(node, num_output_tokens)
        self._undispatch(node)
        self.equals.discard(node)
        node.state = RequestState.DONE
        if node.model:
            self.models.ended(node)
        self.graph.remove(node)
        self.ahead.finished(node)

    def want(self, variable_id: str, objective: Objective) -> None:
        """A reader stated an objective for a variable."""
        self._changed(self._objectives.want(variable_id, objective))

    def _changed(self, nodes: list[RequestNode]) -> None:
        for node in nodes:
            if node in self.equals:
                self._put(node)
            elif node.engine and node.objective is not None:
                self.engines.load_of(node.engine).restate(node)
                if node.objective.kind is not node.told:
                    node.told = node.objective.kind
                    self.upgraded.append(node)

    # The ready queue --------------------------------------------------------------------------------------------------

    def enqueue(self, node: RequestNode) -> None:
        """Queue a ready request, unless its batch is held."""
        if node.state is not RequestState.READY or node in self.equals or self.holds.keep(node):
            return
        self._describe(node)
        self._put(node)
        self.ahead.queued(node)

    def _put(self, node: RequestNode) -> None:
        node.key_ms = order_key_ms(node, self.duration_ms(node))
        self.equals.put(node)

    def _describe(self, node: RequestNode) -> None:
        self._estimates.measure(node)
        self.equals.describe(node)

    def learn_function(
        self, key: TemplateKey, record: FunctionRecord | None, lengths: Mapping[int, LengthHistogram]
    ) -> list[RequestNode]:
        """Take in a function that was looked up; returns the requests to ``describe`` by it."""
        _, tenant, digest = key
        self.lengths.recall(tenant, digest, lengths)
        return self.templates.store(key, record)

    def describe(self, nodes: list[RequestNode], now_s: float) -> None:
        """Digest and measure requests that came before their function was here, wherever they are by now."""
        for node in nodes:
            if node in self.equals:
                if not node.prefix:
                    self.equals.discard(node)
                    self._describe(node)
                    self._put(node)
            elif (load := self.engines.get(node.engine)) is not None:  # by a lane, or faster than the look-up
                self._estimates.measure(node)
                if load.discharge(node.id):
                    load.charge(node, now_s * 1000)
            else:
                self._estimates.expect(node)
        self.ahead.described(nodes)

    def duration_ms(self, node: RequestNode) -> float:
        """Return how long a request is expected to run, in milliseconds."""
        return self._estimates.duration_ms(node)

    # Decisions --------------------------------------------------------------------------------------------------------

    def decide(self, now_ms: float) -> Plan:
        """Decide what starts now, and take it as dispatched until the store says otherwise."""
        together = self.equals.board().placements
        plan = self.equals.depart(decide(self.ready, self.engines, now_ms))
        plan = dataclasses.replace(plan, placements=(*together, *plan.placements))
        for placement in plan.placements:
            node = placement.request
            node.state, node.engine, node.fence = RequestState.QUEUED, placement.engine.id, ""
            node.told = ObjectiveKind.LATENCY if node.objective is None else node.objective.kind
            self.ahead.dispatched(node)
        return plan

    def look_ahead(self, now_ms: float, limit: int) -> bool:
        """Look at up to ``limit`` requests that wait, for what is worth doing ahead; True: there is more to look at."""
        return self.ahead.settle(now_ms, limit)

    def put_back(self, node: RequestNode, *, engine_gone: bool) -> None:
        """A dispatch was refused although the request is ready: queue it again."""
        if engine_gone and (load := self.engines.get(node.engine)) is not None:
            load.suspended = True
        self._undispatch(node)
        if self.graph.requests.get(node.id) is node:
            node.state = RequestState.READY
            self.enqueue(node)

    def adopt(self, node: RequestNode, engine_id: str, fence: str) -> None:
        """A request turned out to be dispatched already, by an earlier leader."""
        self._undispatch(node)
        self.equals.discard(node)
        node.state, node.engine, node.fence = RequestState.QUEUED, engine_id, fence
        self._describe(node)
        if engine_id:
            self.equals.charge(node, self.engines.load_of(engine_id), 0.0)
            self.ahead.dispatched(node)
            if node.objective is not None:  # whoever dispatched it may not have come to tell the engine
                node.told = node.objective.kind
                self.upgraded.append(node)

    def took_lane(self, node: RequestNode, rev: int, engine_id: str, fence: str, now_s: float) -> None:
        """A script dispatched a request by a lane. Old news is ignored."""
        if rev <= node.rev:
            return
        node.rev = rev
        self.lanes.used(node.model)
        self._undispatch(node)
        if node not in self.equals:
            self._describe(node)
            self._put(node)
        node.state, node.engine, node.fence = RequestState.QUEUED, engine_id, fence
        node.told = ObjectiveKind.LATENCY if node.output.objective is None else node.output.objective.kind
        if self.equals.charge(node, self.engines.load_of(engine_id), now_s * 1000):
            self.ready.take(node)
        else:  # an equal one runs there: neither the engine nor the tenant is charged for this one
            self.ready.discard(node)
        self.ahead.dispatched(node)
        if node.objective is not None:
            self._changed([node])

    def due_lanes(self) -> dict[str, Lane] | None:
        """Return the lanes to grant from now on; None if they are as they should be."""
        return self.lanes.due(self.engines.values(), idle=self.equals.is_idle and not len(self.holds))

    def grant_lanes(self) -> dict[str, Lane] | None:
        """Take the lanes that are due as granted, and return them; None if nothing is to be changed."""
        lanes = self.due_lanes()
        if lanes is not None:
            self.lanes.granted(lanes)
        return lanes

    def _undispatch(self, node: RequestNode) -> None:
        if node.engine:
            self.equals.discharge(node)
            node.engine = node.fence = ""
            self.ahead.undispatched(node)

    # Engines ----------------------------------------------------------------------------------------------------------

    def update_engines(self, records: dict[str, EngineRecord | None]) -> None:
        """Take in what every engine says about itself; None, or missing: it has no heartbeat (any more)."""
        self.engines.update(records)
        for record in records.values():
            if record is not None:
                self.models.registered(record.model)
        self._estimates.take_pace(self.engines.values())

    def dead_engines(self) -> list[EngineLoad]:
        """Return the engines without a heartbeat."""
        return [load for load in self.engines.values() if load.record is None]

    def forget_engine(self, engine_id: str) -> None:
        """Drop a dead engine of which nothing is left."""
        outstanding = self.equals.outstanding(engine_id)
        self.engines.pop(engine_id)
        self.ahead.engine_gone(engine_id)
        for request_id in outstanding:
            node = self.graph.requests.get(request_id)
            if node is not None and node.engine == engine_id:
                self.equals.discharge(node)
                node.engine = node.fence = ""
                self.ahead.undispatched(node)
