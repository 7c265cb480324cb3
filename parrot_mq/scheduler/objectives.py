"""What readers ask of variables, carried to the requests that they depend on."""

from __future__ import annotations

from collections.abc import Callable

from parrot_mq.messages import Objective
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import deduce, upstream
from parrot_mq.settings import SchedulerSettings


class Objectives:
    """States objectives in a graph. Each method returns the requests whose objective or task group changed."""

    def __init__(self, settings: SchedulerSettings, graph: Graph, duration_ms: Callable[[RequestNode], float]) -> None:
        self._through = settings.deduce_objectives
        self._groups = settings.task_groups
        self._graph = graph
        self._duration_ms = duration_ms

    def want(self, variable_id: str, objective: Objective) -> list[RequestNode]:
        """A reader stated an objective for a variable."""
        variable = self._graph.variables.get(variable_id)
        if variable is None:
            return []
        if variable.objective is None or objective.strictness > variable.objective.strictness:
            variable.objective = objective
        return self._deduce(variable.producer, objective) if variable.producer is not None else []

    def inherit(self, node: RequestNode) -> list[RequestNode]:
        """A request came whose output others read already: it is for what they are for."""
        changed: list[RequestNode] = []
        for consumer in node.output.consumers.values() if self._through else ():
            if consumer.objective is not None:
                its_ms = self._duration_ms(consumer)
                wanted, remaining_ms = upstream(consumer.objective, its_ms), its_ms + consumer.remaining_ms
                changed += self._deduce(node, wanted, remaining_ms, consumer.objective_of)
        return changed

    def _deduce(
        self, node: RequestNode, objective: Objective, remaining_ms: float = 0.0, stated_for: str = ""
    ) -> list[RequestNode]:
        return deduce(
            node,
            objective,
            self._duration_ms,
            remaining_ms=remaining_ms,
            stated_for=stated_for,
            through=self._through,
            groups=self._groups,
        )
