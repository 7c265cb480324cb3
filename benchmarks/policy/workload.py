"""A service under load, of which only the scheduler's policy is real: engines that take time, requests that come back.

Chats, map-reduce (task groups), throughput work and requests without an objective, of several tenants, with shared
prefixes of several lengths, on engines of three kinds of hardware. What is done is submitted again, so that as many
requests wait at any time; heartbeats come as in a real service.
"""

from __future__ import annotations

import heapq
import random

from parrot_mq.messages import (
    LATENCY,
    THROUGHPUT,
    TPOT,
    CostModel,
    EngineRecord,
    EngineState,
    Objective,
    ObjectiveKind,
    RequestState,
)
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import Arrival, RequestNode, TaskGroup
from parrot_mq.scheduler.policy import Fleet, ReadyQueue, decide, order_key_ms

MODEL = "model"
POLL_MS = 250.0
GROUP = 16
"""Members of a task group; every fifth request is in one."""
NUM_TENANTS = 16
NUM_FUNCTIONS = 200
SLOTS = 32
HARDWARE = (
    (CostModel(0.1, 15.0, 0.1, 0.0005), 3_000),
    (CostModel(0.05, 8.0, 0.05, 0.0003), 8_000),
    (CostModel(0.2, 25.0, 0.2, 0.001), 2_000),
)
"""Costs and KV blocks: memory is what limits the third kind, slots the second, and either the first."""
OBJECTIVES = (LATENCY, TPOT, Objective(ObjectiveKind.TPOT, value_ms=60), THROUGHPUT, THROUGHPUT, None)


class World:
    """``num_engines`` engines, and at any time ``num_waiting`` requests that wait."""

    def __init__(self, num_engines: int, num_waiting: int, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.fleet = Fleet()
        self.ready = ReadyQueue()
        self.now_ms = 0.0
        self.num_decisions = 0
        self.num_plans = 0
        self._records: dict[str, EngineRecord | None] = {}
        for n in range(num_engines):
            cost, num_blocks = HARDWARE[n % len(HARDWARE)]
            self._records[f"e{n}"] = EngineRecord(
                f"e{n}", "sim", MODEL, EngineState.READY, SLOTS, num_blocks=num_blocks, cost=cost
            )
        self._next_poll_ms = 0.0
        self._running: list[tuple[float, int, RequestNode]] = []
        self._left: dict[TaskGroup, list[RequestNode]] = {}
        self._poll()
        nodes = [self._request(n) for n in range(num_waiting + SLOTS * num_engines)]
        grouped = len(nodes) // 5 // GROUP * GROUP
        for start in range(0, grouped, GROUP):
            self._submit_group(nodes[start : start + GROUP])
        for node in nodes[grouped:]:
            self._submit(node)

    def run(self, num_decisions: int) -> None:
        """Go on until ``num_decisions`` more requests were placed."""
        until = self.num_decisions + num_decisions
        while self.num_decisions < until:
            plan = decide(self.ready, self.fleet, self.now_ms)
            self.num_plans += 1
            for placement in plan.placements:
                self.num_decisions += 1
                node = placement.request
                node.engine = placement.engine.id
                finish_ms = self.now_ms + self._random.uniform(0.7, 1.3) * max(1.0, placement.predicted_ms)
                heapq.heappush(self._running, (finish_ms, self.num_decisions, node))
            if not plan.more:
                self._advance()

    def _advance(self) -> None:
        """Let time pass until something is done, and for another millisecond: the scheduler's turns are that long."""
        self.now_ms = self._running[0][0] + 1.0
        while self._running and self._running[0][0] <= self.now_ms:
            node = heapq.heappop(self._running)[2]
            self.fleet[node.engine].discharge(node.id)
            group = node.group
            if group is None:
                self._submit(node)
                continue
            done = self._left.setdefault(group, [])
            done.append(node)
            if len(done) == GROUP:
                self._submit_group(self._left.pop(group))
        if self.now_ms >= self._next_poll_ms:
            self._poll()

    def _poll(self) -> None:
        self.fleet.update(self._records)
        self._next_poll_ms = self.now_ms + POLL_MS

    def _submit(self, node: RequestNode) -> None:
        node.submitted_ms = int(self.now_ms)
        node.key_ms = order_key_ms(node, 0.0)
        self.ready.put(node)

    def _submit_group(self, members: list[RequestNode]) -> None:
        group = TaskGroup(members[0].id, size=len(members))
        for node in members:
            node.group, node.objective, node.tenant, node.prefix = group, LATENCY, members[0].tenant, members[0].prefix
            self._submit(node)

    def _request(self, number: int) -> RequestNode:
        rng = self._random
        tenant = f"tenant{min(rng.randrange(NUM_TENANTS), rng.randrange(NUM_TENANTS))}"
        spec = {
            "id": f"0-r-{number}", "call": "0-c-1", "function": f"f{number % NUM_FUNCTIONS}", "function_name": "f",
            "prompt_end": 1, "bindings": {}, "output": f"0-v-{number}", "output_name": "out", "model": MODEL,
        }  # fmt: skip
        node = Graph().add(spec, Arrival(tenant, "", 0), 1, RequestState.READY)
        assert node is not None
        node.objective = rng.choice(OBJECTIVES)
        node.output_tokens = round(rng.lognormvariate(4.5, 0.8))
        shared = 50 * (1 + number % NUM_FUNCTIONS % 40)
        node.prompt_tokens = shared + round(rng.lognormvariate(5.0, 1.0))
        function = f"{tenant}.{node.function}"
        node.prefix = (
            (f"{function}.system", shared // 2),
            (f"{function}.few-shot", shared),
            (f"{number}.whole", node.prompt_tokens),
        )
        return node
