"""In which order ready requests are served.

Within a tenant by a key that is fixed when a request is queued: the time its program was submitted (first come, first
served among applications), moved by bounded amounts for its objective, its depth (deeper requests finish programs) and
its priority. As the amounts are bounded, whatever is submitted late enough comes later: nobody starves. Between
tenants: the one that was served the fewest tokens so far comes first (virtual counters, Sheng et al., OSDI'24).
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TypeVar

from parrot_mq.messages import ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode, TaskGroup

THROUGHPUT_MS = 10_000.0
"""A throughput request lets latency requests pass that are submitted up to this much later."""
NO_OBJECTIVE_MS = 100.0
"""Nobody has asked for its output yet."""
DEPTH_MS = 50.0
MAX_DEPTH = 100
PRIORITY_MS = 1_000.0
MAX_PRIORITY = 100
MAX_SHIFT_MS = THROUGHPUT_MS + MAX_DEPTH * DEPTH_MS + 2 * MAX_PRIORITY * PRIORITY_MS
"""What is submitted this much later than a request never overtakes it."""


def order_key_ms(node: RequestNode, duration_ms: float) -> float:
    """Return where ``node`` stands: an epoch time in milliseconds, lower first. ``duration_ms``: its expected run."""
    shift = -DEPTH_MS * min(node.depth, MAX_DEPTH) - PRIORITY_MS * max(-MAX_PRIORITY, min(node.priority, MAX_PRIORITY))
    objective = node.objective
    if objective is None:
        shift += NO_OBJECTIVE_MS
    elif objective.kind is ObjectiveKind.THROUGHPUT:
        shift += THROUGHPUT_MS
    elif objective.kind is ObjectiveKind.DEADLINE and objective.at_ms:
        # The latest time it may start is what counts, within the same bounds.
        slack_ms = objective.at_ms - duration_ms - node.submitted_ms
        shift += max(0.0, min(slack_ms, THROUGHPUT_MS))
    return node.submitted_ms + shift


_K = TypeVar("_K")
_Index = dict[_K, OrderedDict[str, RequestNode]]
"""Queued requests by something they have in common, oldest first. (A plain dict is slow to read at its front once
much was deleted there.)"""
_Entry = tuple[float, int, int, RequestNode]
"""Key, sequence number, ticket, request. Valid while the request's ticket is the same."""


class _Line:
    """The ready requests of one model: a heap per tenant, and the tenants in the order of their counters."""

    def __init__(self) -> None:
        self.heaps: dict[str, list[_Entry]] = {}
        self.tenants: list[tuple[float, str]] = []
        self.num_entries = 0


class ReadyQueue:
    """Ready requests that are not dispatched yet. Every operation costs the logarithm of its size, or less."""

    def __init__(self) -> None:
        self._queued: dict[str, RequestNode] = {}
        self._lines: dict[str, _Line] = {}
        self._groups: _Index[TaskGroup] = {}
        self._sharers: _Index[str] = {}
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, node: RequestNode) -> bool:
        return node.id in self._queued

    def __iter__(self) -> Iterator[RequestNode]:
        return iter(list(self._queued.values()))

    def put(self, node: RequestNode) -> None:
        """Queue a request under its ``key_ms``; queue it anew if it is there already."""
        self.discard(node)
        self._sequence += 1
        node.ticket = self._sequence
        self._queued[node.id] = node
        line = self._lines.get(node.model)
        if line is None:
            line = self._lines[node.model] = _Line()
        heap = line.heaps.get(node.tenant)
        if heap is None:
            heap = line.heaps[node.tenant] = []
            served = self._served[node.tenant] = max(self._served.get(node.tenant, 0.0), self._floor)
            heapq.heappush(line.tenants, (served, node.tenant))
        heapq.heappush(heap, (node.key_ms, self._sequence, node.ticket, node))
        line.num_entries += 1
        if node.group is not None:
            self._groups.setdefault(node.group, OrderedDict())[node.id] = node
        for digest, _ in node.prefix:
            self._sharers.setdefault(digest, OrderedDict())[node.id] = node

    def discard(self, node: RequestNode) -> bool:
        """Take a request out without serving it; False if it is not here."""
        if self._queued.pop(node.id, None) is None:
            return False
        node.ticket = 0
        if node.group is not None:
            self._drop(self._groups, node.group, node)
        for digest, _ in node.prefix:
            self._drop(self._sharers, digest, node)
        self._compact(self._lines[node.model])
        return True

    def take(self, node: RequestNode) -> None:
        """Take a request out to serve it: its tenant is charged for its tokens."""
        if self.discard(node):
            served = self._served.get(node.tenant, 0.0)
            self._served[node.tenant] = served + node.prompt_tokens + node.output_tokens

    def first(self, models: Iterable[str]) -> RequestNode | None:
        """Return the request that comes first among those that ask for one of ``models`` ("" is any)."""
        best: tuple[float, float, RequestNode] | None = None
        for model in models:
            line = self._lines.get(model)
            head = self._head(line) if line is not None else None
            if head is not None and (best is None or head[:2] < best[:2]):
                best = head
        if best is None:
            return None
        self._floor = max(self._floor, best[0])
        return best[2]

    def group_members(self, group: TaskGroup, limit: int) -> list[RequestNode]:
        """Return up to ``limit`` queued members of a task group, oldest first."""
        members = self._groups.get(group)
        return list(itertools.islice(members.values(), limit)) if members else []

    def sharers(self, node: RequestNode, limit: int, min_tokens: int) -> list[RequestNode]:
        """Return up to ``limit`` queued requests whose prompt begins as that of ``node`` for ``min_tokens`` or more.

        Those that share the longest beginning come first.
        """
        found: dict[str, RequestNode] = {}
        for digest, num_tokens in reversed(node.prefix):
            if num_tokens < min_tokens or len(found) >= limit:
                break
            for other in itertools.islice(self._sharers.get(digest, {}).values(), limit + 1):
                if other is not node:
                    found[other.id] = other
        return list(found.values())[:limit]

    def _head(self, line: _Line) -> tuple[float, float, RequestNode] | None:
        while line.tenants:
            noted, tenant = line.tenants[0]
            heap = line.heaps[tenant]
            while heap and heap[0][3].ticket != heap[0][2]:
                heapq.heappop(heap)
                line.num_entries -= 1
            if not heap:
                heapq.heappop(line.tenants)
                del line.heaps[tenant]
                self._forget_idle()
                continue
            served = self._served.get(tenant, self._floor)
            if served > noted:  # counters only grow, so a stale entry stands too far in front, never too far back
                heapq.heapreplace(line.tenants, (served, tenant))
                continue
            return served, heap[0][0], heap[0][3]
        return None

    def _forget_idle(self) -> None:
        if len(self._served) <= 1024:
            return
        active = {tenant for line in self._lines.values() for tenant in line.heaps}
        self._served = {t: n for t, n in self._served.items() if t in active or n > self._floor}

    def _compact(self, line: _Line) -> None:
        # Taken-out entries stay in their heap until they come first; rebuild when most are such.
        if line.num_entries <= 2 * len(self._queued) + 64:
            return
        line.num_entries = 0
        for heap in line.heaps.values():
            heap[:] = [entry for entry in heap if entry[3].ticket == entry[2]]
            heapq.heapify(heap)
            line.num_entries += len(heap)

    @staticmethod
    def _drop(index: _Index[_K], key: _K, node: RequestNode) -> None:
        members = index.get(key)
        if members is not None and members.pop(node.id, None) is not None and not members:
            del index[key]
