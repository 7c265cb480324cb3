"""The messages to engines about prefixes: compute one, keep it, let it go, follow an input. No I/O, no clock."""

from __future__ import annotations

import dataclasses
import enum
import heapq
import itertools
from collections import deque
from collections.abc import Callable

from parrot_mq.messages import PrefixHint
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.prefix import Step
from parrot_mq.scheduler.prefixes import Follow, Replica
from parrot_mq.scheduler.templates import Templates

RETRY_MS = 250.0
"""How soon that is tried again for which something was missing: room, an engine, a template."""


class OrderKind(enum.StrEnum):
    """What an engine is told to do with a prefix."""

    PREFILL = "prefill"
    """Compute it, and then what it follows; keep it if the hint says so."""
    RETAIN = "retain"
    RELEASE = "release"
    """Keep it no longer, and stop computing it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A message to an engine, sent by a partition of the store. ``hint`` is None for RELEASE."""

    kind: OrderKind
    engine: str
    partition: int
    key: str
    hint: PrefixHint | None = None


class Hints:
    """``orders`` are the messages to send, in this order; whoever sends takes them out.

    There are at most three for each request that was looked at, and one for each hint that is out; ``wake`` is called
    when there are some again.
    """

    def __init__(self, templates: Templates, wake: Callable[[], None], *, retains: bool) -> None:
        self.orders: deque[Order] = deque()
        self._templates = templates
        self._wake = wake
        self._retains = retains
        self._renewals: list[tuple[float, int, Replica]] = []
        self._count = itertools.count()
        self._now_ms = 0.0

    def give(self, replica: Replica) -> None:
        """Have a prefix computed, if that is due, and kept, if anything is to be kept."""
        prefix = replica.prefix
        node = next(iter(prefix.members.values())).node
        template = self._templates.get(node)
        if template is None:  # forgotten, and on its way again
            self._renew_at(replica, self._now_ms + RETRY_MS)
            return
        retain_s = rules.RETAIN_S if self._retains else 0.0
        hint = rules.prefix_hint(template, node, prefix.step, prefix.key, retain_s=retain_s)
        replica.partition = node.partition
        kind = OrderKind.PREFILL if replica.is_due else OrderKind.RETAIN
        self._order(kind, replica.engine, replica.partition, prefix.key, hint)
        if replica.is_due:
            replica.is_due, replica.is_unread = False, True
        replica.is_kept = self._retains
        if self._retains:
            self._renew_at(replica, self._now_ms + 500 * rules.RETAIN_S)

    def take_back(self, replica: Replica) -> None:
        """Have a prefix kept no longer, nor computed."""
        replica.is_kept = replica.is_unread = False
        replica.renew_ms = 0.0
        self._order(OrderKind.RELEASE, replica.engine, replica.partition, replica.prefix.key)

    def follow(self, follow: Follow, template: Template, node: RequestNode, step: Step) -> None:
        """Have the prompt of ``node`` up to ``step`` computed, and a variable behind it as it comes."""
        hint = rules.prefix_hint(template, node, step, follow.key, follow=follow.variable_id)
        self._order(OrderKind.PREFILL, follow.engine, follow.partition, follow.key, hint)

    def unfollow(self, follow: Follow) -> None:
        """Have a variable followed no longer."""
        self._order(OrderKind.RELEASE, follow.engine, follow.partition, follow.key)

    def renew(self, now_ms: float) -> None:
        """Go on to this time: give again what would run out, or could not be given."""
        self._now_ms = now_ms
        while self._renewals and self._renewals[0][0] <= now_ms:
            due_ms, _, replica = heapq.heappop(self._renewals)
            if replica.renew_ms == due_ms:
                self.give(replica)

    def _renew_at(self, replica: Replica, at_ms: float) -> None:
        replica.renew_ms = at_ms
        heapq.heappush(self._renewals, (at_ms, next(self._count), replica))

    def _order(self, kind: OrderKind, engine_id: str, partition: int, key: str, hint: PrefixHint | None = None) -> None:
        if not self.orders:
            self._wake()
        self.orders.append(Order(kind, engine_id, partition, key, hint))
