"""In which order ready requests are served.

Within a tenant by a key that is fixed when a request is queued: the time its program was submitted (first come, first
served among applications), moved by bounded amounts for its objective, its slack (0 on the critical path of its
program), its depth (deeper requests finish programs) and its priority. As the amounts are bounded, whatever is
submitted ``MAX_SHIFT_MS`` later comes later: nobody starves.

Between tenants: the one that was served the fewest tokens so far comes first (virtual counters, Sheng et al., OSDI'24).
What is served at once is a request, or a task group or prefix sharers with it; between two tenants that both wait all
the time, the tokens served to them never differ by more than the largest such part of either.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from parrot_mq.messages import ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode, TaskGroup

THROUGHPUT_MS = 10_000.0
"""A throughput request lets latency requests pass that are submitted up to this much later."""
MAX_SLACK_MS = 10_000.0
"""Slack, on the way to a deadline or beside a critical path, counts up to here."""
NO_OBJECTIVE_MS = 100.0
"""Nobody has asked for its output yet."""
DEPTH_MS = 50.0
MAX_DEPTH = 100
PRIORITY_MS = 1_000.0
MAX_PRIORITY = 100
MAX_SHIFT_MS = max(THROUGHPUT_MS, MAX_SLACK_MS) + MAX_DEPTH * DEPTH_MS + 2 * MAX_PRIORITY * PRIORITY_MS
"""What is submitted this much later than a request never overtakes it."""


MAX_IDLE = 1024
"""Counters of tenants that are looked through for those that need not be remembered, once there are more."""


def order_key_ms(node: RequestNode, duration_ms: float) -> float:
    """Return where ``node`` stands: an epoch time in milliseconds, lower first. ``duration_ms``: its expected run."""
    shift = -DEPTH_MS * min(node.depth, MAX_DEPTH) - PRIORITY_MS * max(-MAX_PRIORITY, min(node.priority, MAX_PRIORITY))
    objective = node.objective
    if objective is None:
        shift += NO_OBJECTIVE_MS
    elif objective.kind is ObjectiveKind.THROUGHPUT:
        shift += THROUGHPUT_MS
    else:
        slack_ms = node.slack_ms
        if objective.kind is ObjectiveKind.DEADLINE and objective.at_ms:
            slack_ms = objective.at_ms - duration_ms - node.submitted_ms  # what it must start by
        elif objective.kind is ObjectiveKind.TTFT and objective.value_ms:
            slack_ms = float(objective.value_ms)
        shift += max(0.0, min(slack_ms, MAX_SLACK_MS))
    return node.submitted_ms + shift


def line_of(node: RequestNode) -> Line:
    """Return the line that ``node`` stands in."""
    objective = node.objective
    return node.model, objective is None or objective.kind is ObjectiveKind.THROUGHPUT


_K = TypeVar("_K")


class _Index(Generic[_K]):
    """Queued requests by something they have in common, oldest first."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        # Most have nothing in common with others: such a one stands here as it is. (And a plain dict is slow to read at
        # its front once much was deleted there.)
        self._of: dict[_K, RequestNode | OrderedDict[str, RequestNode]] = {}

    def add(self, key: _K, node: RequestNode) -> None:
        members = self._of.setdefault(key, node)
        if isinstance(members, OrderedDict):
            members[node.id] = node
        elif members is not node:
            self._of[key] = OrderedDict(((members.id, members), (node.id, node)))

    def discard(self, key: _K, node: RequestNode) -> None:
        members = self._of.get(key)
        if isinstance(members, OrderedDict):
            members.pop(node.id, None)
            if not members:
                del self._of[key]
        elif members is node:
            del self._of[key]

    def first(self, key: _K, limit: int) -> list[RequestNode]:
        members = self._of.get(key)
        if isinstance(members, OrderedDict):
            return list(itertools.islice(members.values(), limit))
        return [members] if members is not None and limit > 0 else []


_Entry = tuple[float, int, RequestNode]
"""Key, ticket, request. Valid while the request's ticket is the same; no two requests have the same."""
_Head = tuple[float, float, int, RequestNode]
"""The tokens that a tenant was served, and its first entry."""
Line = tuple[str, bool]
"""The model that requests ask for, and whether they are throughput work, which may be held off where others are not."""


class _Line:
    """The ready requests of one line: a heap per tenant, and the tenants in the order of their counters."""

    def __init__(self, key: Line) -> None:
        self.key = key
        self.heaps: dict[str, list[_Entry]] = {}
        self.tenants: list[tuple[float, str]] = []
        self.num_entries = 0
        self.num_queued = 0


class ReadyQueue:
    """Ready requests that are not dispatched yet. Every operation costs the logarithm of its size, or less."""

    def __init__(self) -> None:
        self._queued: dict[str, tuple[RequestNode, _Line]] = {}
        self._lines: dict[Line, _Line] = {}
        self._aside: list[tuple[_Line, _Entry]] = []
        self._groups: _Index[TaskGroup] = _Index()
        self._sharers: _Index[str] = _Index()
        self._served: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}
        self._floor = 0.0
        self._forget_at = MAX_IDLE
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, node: RequestNode) -> bool:
        return node.id in self._queued

    def __iter__(self) -> Iterator[RequestNode]:
        return iter([node for node, _ in self._queued.values()])

    def put(self, node: RequestNode) -> None:
        """Queue a request under its ``key_ms``; queue it anew if it is there already."""
        tenant = node.tenant
        if tenant not in self._num_waiting:  # it comes back: what it was not served meanwhile is not saved up
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._floor)
        if node.id in self._queued:
            self.discard(node)
        self._sequence += 1
        node.ticket = self._sequence
        key = line_of(node)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key)
        line.num_queued += 1
        self._queued[node.id] = node, line
        self._num_waiting[tenant] = self._num_waiting.get(tenant, 0) + 1
        self._push(line, (node.key_ms, node.ticket, node))
        if node.group is not None:
            self._groups.add(node.group, node)
        for digest, _ in node.prefix:
            self._sharers.add(digest, node)

    def _push(self, line: _Line, entry: _Entry) -> None:
        tenant = entry[2].tenant
        heap = line.heaps.get(tenant)
        if heap is None:
            heap = line.heaps[tenant] = []
            heapq.heappush(line.tenants, (self._served[tenant], tenant))
        heapq.heappush(heap, entry)
        line.num_entries += 1

    def discard(self, node: RequestNode) -> bool:
        """Take a request out without serving it; False if it is not here."""
        queued = self._queued.pop(node.id, None)
        if queued is None:
            return False
        node.ticket = 0
        if node.group is not None:
            self._groups.discard(node.group, node)
        for digest, _ in node.prefix:
            self._sharers.discard(digest, node)
        left = self._num_waiting[node.tenant] - 1
        if left:
            self._num_waiting[node.tenant] = left
        else:
            del self._num_waiting[node.tenant]
            self._forget_idle()
        line = queued[1]
        line.num_queued -= 1
        if line.num_queued:
            self._compact(line)
        else:  # models are named by applications: what is left of a line goes with its last request
            del self._lines[line.key]
        return True

    def take(self, node: RequestNode) -> None:
        """Take a request out to serve it: its tenant is charged for its tokens."""
        if node.id in self._queued:
            self._served[node.tenant] += node.prompt_tokens + node.output_tokens
            self.discard(node)

    def first(self, models: Iterable[str], held: Collection[Line] = ()) -> RequestNode | None:
        """Return the request that comes first among those that ask for one of ``models`` ("" is any), except in the
        lines ``held``.
        """
        best: _Head | None = None
        lines = self._lines
        for model in models:
            for key in ((model, False), (model, True)):
                line = lines.get(key)
                if line is None or key in held:
                    continue
                head = self._head(line)
                if head is not None and (best is None or head < best):
                    best = head
        if best is None:
            return None
        self._floor = max(self._floor, best[0])
        return best[3]

    def pass_over(self, node: RequestNode) -> None:
        """Let others come before ``node``, which ``first`` has just returned, until ``restore``. It stays queued."""
        line = self._queued[node.id][1]
        line.num_entries -= 1
        self._aside.append((line, heapq.heappop(line.heaps[node.tenant])))

    def restore(self) -> None:
        """Put every request that was passed over back where it stood."""
        for line, entry in self._aside:
            if entry[2].ticket == entry[1]:
                self._push(line, entry)
        self._aside.clear()

    def group_members(self, group: TaskGroup, limit: int) -> list[RequestNode]:
        """Return up to ``limit`` queued members of a task group, oldest first."""
        return self._groups.first(group, limit)

    def sharers(self, node: RequestNode, limit: int, min_tokens: int) -> list[RequestNode]:
        """Return up to ``limit`` queued requests whose prompt begins as that of ``node`` for ``min_tokens`` or more.

        Those that share the longest beginning come first.
        """
        found: dict[str, RequestNode] = {}
        for digest, num_tokens in reversed(node.prefix):
            if num_tokens < min_tokens or len(found) >= limit:
                break
            for other in self._sharers.first(digest, limit + 1):
                if other is not node:
                    found[other.id] = other
        return list(found.values())[:limit]

    def _head(self, line: _Line) -> _Head | None:
        tenants, heaps = line.tenants, line.heaps
        while tenants:
            noted, tenant = tenants[0]
            heap = heaps[tenant]
            while heap:
                key_ms, ticket, node = heap[0]
                if node.ticket == ticket:
                    break
                heapq.heappop(heap)
                line.num_entries -= 1
            else:
                heapq.heappop(tenants)
                del heaps[tenant]
                continue
            served = self._served[tenant]
            if served > noted:  # counters only grow, so a stale entry stands too far in front, never too far back
                heapq.heapreplace(tenants, (served, tenant))
                continue
            return served, key_ms, ticket, node
        return None

    def _forget_idle(self) -> None:
        # A tenant without requests that is not ahead of the floor starts there when it comes back, known or not.
        if len(self._served) > self._forget_at:
            self._served = {t: n for t, n in self._served.items() if t in self._num_waiting or n > self._floor}
            self._forget_at = max(MAX_IDLE, 2 * len(self._served))

    def _compact(self, line: _Line) -> None:
        # Taken-out entries stay in their heap until they come first; rebuild when most are such.
        if line.num_entries <= 2 * line.num_queued + 64:
            return
        line.num_entries = 0
        for tenant, heap in list(line.heaps.items()):
            heap[:] = [entry for entry in heap if entry[2].ticket == entry[1]]
            heapq.heapify(heap)
            line.num_entries += len(heap)
            if not heap:
                del line.heaps[tenant]
        line.tenants = [noted for noted in line.tenants if noted[1] in line.heaps]
        heapq.heapify(line.tenants)
