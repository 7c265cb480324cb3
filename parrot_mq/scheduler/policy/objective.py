"""Objective deduction: from what a reader asks of one variable to what each request upstream is for.

Parrot (OSDI'24), section 5.2: THROUGHPUT makes every direct and indirect producer throughput-preferred. LATENCY goes
back from the variable through serial predecessors; parallel requests of one stage that feed the same consumer become a
task group, whose completion as a whole counts. Beyond it: a stricter objective that is stated later upgrades; TTFT and
TPOT hold for the request whose output is read, all before it is latency-sensitive (nothing is read before they are
done); a deadline moves forward by the expected duration of every step on the way back. On the same way back each
request learns how long the path behind it is, and how far it is from the longest one (its slack, as in the critical
path method, Kelley and Walker, 1959).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from parrot_mq.messages import LATENCY, Objective, ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode, TaskGroup

Duration = Callable[[RequestNode], float]
"""Expected time that a request runs, in milliseconds."""


LONGER = 1.25
"""A path that turns out longer is told to the requests before it once it is by this factor: so the paths of a graph
whose outputs are asked for one after the other are walked a logarithmic number of times, not each time."""


@dataclasses.dataclass(slots=True)
class _Visit:
    """What the consumers of a request, visited before it, have made of it."""

    wanted: Objective
    group: TaskGroup | None
    remaining_ms: float


def deduce(
    start: RequestNode,
    objective: Objective,
    duration_ms: Duration,
    *,
    remaining_ms: float = 0.0,
    stated_for: str = "",
    through: bool = True,
    groups: bool = True,
) -> list[RequestNode]:
    """State ``objective`` for the output of ``start``; returns the requests whose objective or group changed.

    Visits only requests that it makes stricter, or whose path it makes longer, deepest first, so that each is expanded
    once: the whole graph is never scanned. Producers already finished are not in the graph and need no objective.
    ``remaining_ms``: expected time after ``start`` until what somebody waits for is done, if that is not its output,
    but ``stated_for``, a variable after it.
    Without ``through`` the objective is that of ``start`` alone; without ``groups`` no task groups are formed.
    """
    changed: list[RequestNode] = []
    joined: list[tuple[TaskGroup, RequestNode]] = []
    visits = {start.id: _Visit(objective, None, remaining_ms)}
    order = itertools.count()
    heap = [(-start.depth, next(order), start)]
    length_ms = None
    while heap:
        _, _, node = heapq.heappop(heap)
        visit = visits.pop(node.id)
        group = visit.group
        joins = group is not None and node.group is None and visit.wanted.kind is not ObjectiveKind.THROUGHPUT
        if joins and group is not None:
            node.group = group
            group.size += 1
            joined.append((group, node))
        stricter = node.objective is None or visit.wanted.strictness > node.objective.strictness
        longer = visit.remaining_ms > LONGER * node.remaining_ms
        if stricter or longer or joins:
            changed.append(node)
        if not stricter and not longer:
            continue
        its_ms = duration_ms(node)
        if length_ms is None:
            length_ms = node.before_ms + its_ms + remaining_ms
        slack_ms = max(0.0, length_ms - node.before_ms - its_ms - visit.remaining_ms)
        node.slack_ms = slack_ms if node.objective is None else min(node.slack_ms, slack_ms)
        node.remaining_ms = max(node.remaining_ms, visit.remaining_ms)
        if stricter:
            node.objective, node.objective_of = visit.wanted, stated_for or start.output.id
        assert node.objective is not None
        if not through:
            break
        wanted = upstream(node.objective, its_ms)
        for producer, its_group in predecessors(node, visits):
            found = visits.get(producer.id)
            if found is None:
                found = visits[producer.id] = _Visit(wanted, None, 0.0)
                heapq.heappush(heap, (-producer.depth, next(order), producer))
            elif wanted.strictness > found.wanted.strictness:
                found.wanted = wanted
            found.remaining_ms = max(found.remaining_ms, its_ms + node.remaining_ms)
            if groups and found.group is None:
                found.group = its_group
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


def predecessors(
    node: RequestNode, visits: Mapping[str, _Visit] = MappingProxyType({})
) -> list[tuple[RequestNode, TaskGroup | None]]:
    """Return the unfinished producers of a request's inputs, each with the task group that it belongs to.

    Producers of equal depth cannot depend on one another, so two or more of them are parallel and form a group. A
    producer alone at its depth is a serial predecessor: it belongs to the stage before its consumer's group, if any.

    A request is in one group at most. Where groups overlap, since an output has several readers, producers without a
    group join one that another of them is in already (or is about to be: ``visits``); those in another one stay there.
    """
    stages: dict[int, list[RequestNode]] = {}
    for variable in node.inputs:
        if variable.producer is not None:
            stages.setdefault(variable.producer.depth, []).append(variable.producer)
    found: list[tuple[RequestNode, TaskGroup | None]] = []
    for depth, producers in sorted(stages.items()):
        if len(producers) > 1:
            theirs = (p.group or (visits[p.id].group if p.id in visits else None) for p in producers)
            existing = next((group for group in theirs if group is not None), None)
            group = existing or TaskGroup(node.id if depth == node.depth - 1 else f"{node.id}.{depth}")
            found += [(producer, group) for producer in producers]
        else:
            found.append((producers[0], node.group.earlier() if node.group is not None else None))
    return found
