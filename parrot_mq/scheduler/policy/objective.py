"""Objective deduction: from what a reader asks of one variable to what each request upstream is for.

Parrot (OSDI'24), section 5.2: THROUGHPUT makes every direct and indirect producer throughput-preferred. LATENCY goes
back from the variable through serial predecessors; parallel requests of one stage that feed the same consumer become a
task group, whose completion as a whole counts. Beyond it: a stricter objective that is stated later upgrades; TTFT and
TPOT hold for the request whose output is read, all before it is latency-sensitive (nothing is read before they are
done); a deadline moves forward by the expected duration of every step on the way back.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from parrot_mq.messages import LATENCY, Objective, ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode, TaskGroup

Duration = Callable[[RequestNode], float]
"""Expected time that a request runs, in milliseconds."""


def deduce(start: RequestNode, objective: Objective, duration_ms: Duration, stated_for: str = "") -> list[RequestNode]:
    """State ``objective`` for the output of ``start``; returns the requests whose objective or group changed.

    ``stated_for`` is the variable whose reader stated it; "": the output of ``start``.

    Visits only requests that it makes stricter, deepest first, so that each is expanded once: the whole graph is never
    scanned. Producers already finished are not in the graph and need no objective.
    """
    changed: list[RequestNode] = []
    joined: list[tuple[TaskGroup, RequestNode]] = []
    order = itertools.count()
    heap: list[tuple[int, int, int, RequestNode, Objective, TaskGroup | None]] = []

    def push(node: RequestNode, wanted: Objective, group: TaskGroup | None) -> None:
        heapq.heappush(heap, (-node.depth, -wanted.strictness, next(order), node, wanted, group))

    push(start, objective, None)
    while heap:
        _, _, _, node, wanted, group = heapq.heappop(heap)
        joins = group is not None and node.group is None and wanted.kind is not ObjectiveKind.THROUGHPUT
        if joins and group is not None:
            node.group = group
            group.size += 1
            joined.append((group, node))
        stricter = node.objective is None or wanted.strictness > node.objective.strictness
        if stricter:
            node.objective, node.objective_of = wanted, stated_for or start.output.id
        if stricter or joins:
            changed.append(node)
        if stricter:
            for producer, its_group in predecessors(node):
                push(producer, upstream(wanted, duration_ms(node)), its_group)
    for group, node in joined:
        if group.size == 1:  # nothing is parallel to it after all
            node.group, group.size = None, 0
    return changed


def upstream(objective: Objective, duration_ms: float) -> Objective:
    """Return what the producers of a request's inputs are for, given the request's own objective and duration."""
    if objective.kind is ObjectiveKind.THROUGHPUT:
        return objective
    if objective.kind is ObjectiveKind.DEADLINE and objective.at_ms:
        return Objective(ObjectiveKind.DEADLINE, at_ms=max(1, objective.at_ms - round(duration_ms)))
    return LATENCY


def predecessors(node: RequestNode) -> list[tuple[RequestNode, TaskGroup | None]]:
    """Return the unfinished producers of a request's inputs, each with the task group that it belongs to.

    Producers of equal depth cannot depend on one another, so two or more of them are parallel and form a group. A
    producer alone at its depth is a serial predecessor: it belongs to the stage before its consumer's group, if any.
    """
    stages: dict[int, list[RequestNode]] = {}
    for variable in node.inputs:
        if variable.producer is not None:
            stages.setdefault(variable.producer.depth, []).append(variable.producer)
    found: list[tuple[RequestNode, TaskGroup | None]] = []
    for depth, producers in sorted(stages.items()):
        if len(producers) > 1:
            existing = next((p.group for p in producers if p.group is not None), None)
            group = existing or TaskGroup(node.id if depth == node.depth - 1 else f"{node.id}.{depth}")
            found += [(producer, group) for producer in producers]
        else:
            found.append((producers[0], node.group.earlier() if node.group is not None else None))
    return found
