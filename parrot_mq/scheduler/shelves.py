"""What hints have put on the engines: prefixes that are kept or computed there, inputs that are followed. No I/O."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from parrot_mq.messages import PrefixHint
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.policy import EngineLoad, Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.retention import Change
from parrot_mq.scheduler.prefixes import Follow, Order, OrderKind, Prefix, Shelf, Waiting
from parrot_mq.scheduler.templates import Templates

RETRY_MS = 250.0
"""How often requests for which there was no room are tried again on the word of heartbeats."""
MAX_LOOKED_AT = 16
"""Members of a prefix among which one is sought that still waits, to learn when it is read next."""
MAX_RETRIED = 4
"""Requests that are looked at again when something that was computed ahead has been read."""


class Shelves:
    """One shelf per engine. ``orders`` are the messages to send, in this order.

    There are at most three for each request that was looked at, and one for each hint that is out; ``wake`` is called
    when there are some again, ``look_at`` with each request for which something has changed.
    """

    def __init__(
        self,
        graph: Graph,
        engines: Mapping[str, EngineLoad],
        templates: Templates,
        duration_ms: Callable[[RequestNode], float],
        look_at: Callable[[RequestNode], None],
        wake: Callable[[], None],
        *,
        retains: bool,
    ) -> None:
        self.orders: deque[Order] = deque()
        self._graph = graph
        self._engines = engines
        self._templates = templates
        self._duration_ms = duration_ms
        self._look_at = look_at
        self._wake = wake
        self._retains = retains
        self._shelves: dict[str, Shelf] = {}
        self._renewals: deque[tuple[float, Prefix, str]] = deque()
        self._deferring: set[str] = set()
        self._now_ms = self._retry_ms = 0.0

    def anchor(self, wait: Waiting, prefix: Prefix, load: EngineLoad) -> None:
        """Keep ``prefix`` on an engine for a request, instead of what was kept for it before."""
        next_use_ms = rules.next_use_ms(wait.node, self._duration_ms, self._now_ms)
        shelf = self._shelf(load)
        old = wait.anchor
        assert prefix.engine in ("", load.id), f"{prefix.key} is kept on {prefix.engine} already"
        if old is not prefix:
            prefix.num_waiting += 1
            wait.anchor = prefix
        is_later = prefix.num_waiting == 1 or prefix.next_use_ms < self._now_ms
        prefix.next_use_ms = next_use_ms if is_later else min(prefix.next_use_ms, next_use_ms)
        prefix.engine = load.id
        shelf.prefixes[prefix.key] = prefix
        self._plan(wait.node, load.id, prefix.num_tokens)
        if self._retains:
            self._apply(load.id, shelf.retention.resize(rules.retain_budget_tokens(load)))
            self._apply(load.id, shelf.retention.want(prefix.key, prefix.num_tokens, prefix.next_use_ms))
        elif prefix.is_due and not prefix.is_unread:
            self._say(prefix, OrderKind.PREFILL)
        if old is not None and old is not prefix:
            old.num_waiting -= 1
            self._waited_for_less(old)
            self._let_go_if_unused(old)

    def unanchor(self, wait: Waiting) -> None:
        """Keep nothing more for a request."""
        prefix, wait.anchor = wait.anchor, None
        if prefix is None:
            return
        if wait.is_reading:
            wait.is_reading = False
            prefix.num_reading -= 1
        else:
            prefix.num_waiting -= 1
            self._waited_for_less(prefix)
        self._let_go_if_unused(prefix)

    def read(self, wait: Waiting) -> None:
        """A request was dispatched: what was planned for it is done with, or is being read."""
        node, anchor = wait.node, wait.anchor
        self.unfollow(wait)
        self.unplan(node)
        if anchor is None or wait.is_reading:
            return
        if anchor.engine != node.engine:
            self.unanchor(wait)
            return
        anchor.num_waiting -= 1
        anchor.num_reading += 1
        anchor.is_unread = anchor.is_due = False
        wait.is_reading = True
        self._waited_for_less(anchor)

    def follow(self, wait: Waiting, template: Template, key: str, load: EngineLoad, variable: VariableNode) -> None:
        """Have the tokens of ``variable`` flow into the prefill of a request on an engine."""
        node, shelf = wait.node, self._shelf(load)
        if wait.follow is not None and wait.follow.key == key and wait.follow.engine == load.id:
            return
        self.unfollow(wait)
        follow = shelf.follows.get(key)
        if follow is None:
            follow = shelf.follows[key] = Follow(key, load.id, node.partition, variable.id)
            hint = rules.prefix_hint(template, node, wait.last, key, follow=variable.id)
            self._order(OrderKind.PREFILL, load.id, node.partition, key, hint)
        follow.members[node.id] = wait
        wait.follow = follow
        self._plan(node, load.id, wait.last.num_tokens)

    def unfollow(self, wait: Waiting) -> None:
        """A request needs the tokens of its input no longer as they come."""
        follow, wait.follow = wait.follow, None
        if follow is None:
            return
        follow.members.pop(wait.node.id, None)
        shelf = self._shelves.get(follow.engine)
        if follow.members or shelf is None:
            return
        del shelf.follows[follow.key]
        self._make_room(shelf, follow.key)
        variable = self._graph.variables.get(follow.variable_id)
        if variable is None or not variable.resolved:  # else it ends by itself
            self._order(OrderKind.RELEASE, follow.engine, follow.partition, follow.key)

    def reserve(self, wait: Waiting, load: EngineLoad, key: str, num_tokens: int) -> bool:
        """Count what is to be computed ahead; False if there is no room: the request is looked at again later."""
        self.no_longer_deferred(wait)
        shelf = self._shelf(load)
        if key not in shelf.ahead:
            if shelf.num_ahead_tokens + num_tokens > rules.prefill_budget_tokens(load):
                shelf.deferred[wait.node.id] = wait.node
                wait.deferred_on = load.id
                self._deferring.add(load.id)
                return False
            shelf.charge(key, num_tokens)
        return True

    def no_longer_deferred(self, wait: Waiting) -> None:
        """A request waits for room no longer."""
        shelf = self._shelves.get(wait.deferred_on)
        if shelf is not None:
            shelf.deferred.pop(wait.node.id, None)
        wait.deferred_on = ""

    def gone(self, engine_id: str) -> None:
        """An engine is no more, with all that was there."""
        shelf = self._shelves.pop(engine_id, None)
        if shelf is None:
            return
        for follow in shelf.follows.values():
            for wait in follow.members.values():
                wait.follow = None
                self.unplan(wait.node)
                self._look_at(wait.node)
        for prefix in shelf.prefixes.values():
            prefix.engine = ""
            prefix.num_waiting = prefix.num_reading = 0
            prefix.is_due = prefix.is_kept = prefix.is_unread = False
            for wait in prefix.members.values():
                if wait.anchor is prefix:
                    wait.anchor, wait.is_reading = None, False
                    self.unplan(wait.node)
                self._look_at(wait.node)
        for node in shelf.deferred.values():
            self._look_at(node)

    def renew(self, now_ms: float) -> None:
        """Go on to this time; renew the hints to keep something that would run out, try again where memory is free."""
        self._now_ms = now_ms
        while self._renewals and self._renewals[0][0] <= self._now_ms:
            due_ms, prefix, engine_id = self._renewals.popleft()
            if prefix.is_kept and prefix.renew_ms == due_ms and prefix.engine == engine_id:
                self._say(prefix, OrderKind.RETAIN)
        if now_ms >= self._retry_ms:
            self._retry_ms = now_ms + RETRY_MS
            for engine_id in list(self._deferring):
                self._retry(engine_id)

    def num_planned(self, engine_id: str) -> int:
        """Return how many requests that wait are planned for an engine."""
        shelf = self._shelves.get(engine_id)
        return shelf.num_planned if shelf is not None else 0

    def check(self, waits: Iterable[Waiting]) -> None:
        """Raise AssertionError unless the books agree with what stands in ``waits``, all that wait or read."""
        waiting, reading, planned = Counter[str](), Counter[str](), Counter[str]()
        follows: set[str] = set()
        for wait in waits:
            if wait.anchor is not None:
                (reading if wait.is_reading else waiting)[wait.anchor.key] += 1
                assert self._shelves[wait.anchor.engine].prefixes[wait.anchor.key] is wait.anchor
            if wait.follow is not None:
                assert wait.follow.members[wait.node.id] is wait
                follows.add(wait.follow.key)
            planned[wait.node.planned_engine] += 1
        for engine_id, shelf in self._shelves.items():
            shelf.check()
            assert shelf.num_planned == planned[engine_id], f"{shelf.num_planned} are planned for {engine_id}"
            assert shelf.follows.keys() <= follows
            for key, prefix in shelf.prefixes.items():
                assert prefix.engine == engine_id
                assert (prefix.num_waiting, prefix.num_reading) == (waiting[key], reading[key])

    def unplan(self, node: RequestNode) -> None:
        """A request is planned for no engine (any more)."""
        shelf = self._shelves.get(node.planned_engine)
        if shelf is not None:
            shelf.num_planned -= 1
        node.planned_engine, node.planned_tokens = "", 0

    def _plan(self, node: RequestNode, engine_id: str, num_tokens: int) -> None:
        if node.planned_engine != engine_id:
            self.unplan(node)
            self._shelves[engine_id].num_planned += 1
        node.planned_engine = engine_id
        node.planned_tokens = max(node.planned_tokens, num_tokens)

    def _waited_for_less(self, prefix: Prefix) -> None:
        """One request less waits for it: nobody's wish, or somebody else's time."""
        shelf = self._shelves.get(prefix.engine)
        if shelf is None:
            return
        if not prefix.num_waiting:
            self._make_room(shelf, prefix.key)
            self._apply(prefix.engine, shelf.retention.drop(prefix.key))
            return
        for wait in itertools.islice(prefix.members.values(), MAX_LOOKED_AT):
            if wait.anchor is prefix and not wait.is_reading:
                self._look_at(wait.node)
                return

    def _let_go_if_unused(self, prefix: Prefix) -> None:
        """After its last read, forget that it is kept."""
        shelf = self._shelves.get(prefix.engine)
        if prefix.num_reading or shelf is None:
            return
        if (prefix.is_kept and not shelf.retention.keeps(prefix.key)) or (prefix.is_unread and not prefix.num_waiting):
            self._release(prefix)
        if not prefix.num_waiting:
            del shelf.prefixes[prefix.key]
            prefix.engine = ""
            prefix.is_due = False

    def _apply(self, engine_id: str, change: Change) -> None:
        shelf = self._shelves[engine_id]
        for key in change.released:
            prefix = shelf.prefixes.get(key)
            if prefix is not None and prefix.is_kept and not prefix.num_reading:
                self._release(prefix)
        for key in change.kept:
            prefix = shelf.prefixes[key]
            if not prefix.is_kept:
                self._say(prefix, OrderKind.PREFILL if prefix.is_due else OrderKind.RETAIN)

    def _say(self, prefix: Prefix, kind: OrderKind) -> None:
        node = next(iter(prefix.members.values())).node
        template = self._templates.get(node)
        if template is None:
            return
        retain_s = rules.RETAIN_S if self._retains else 0.0
        hint = rules.prefix_hint(template, node, prefix.step, prefix.key, retain_s=retain_s)
        prefix.partition = node.partition
        self._order(kind, prefix.engine, prefix.partition, prefix.key, hint)
        if kind is OrderKind.PREFILL:
            prefix.is_due, prefix.is_unread = False, True
        if self._retains:
            prefix.is_kept = True
            prefix.renew_ms = self._now_ms + 500 * rules.RETAIN_S
            self._renewals.append((prefix.renew_ms, prefix, prefix.engine))

    def _release(self, prefix: Prefix) -> None:
        prefix.is_kept = prefix.is_unread = False
        self._order(OrderKind.RELEASE, prefix.engine, prefix.partition, prefix.key)

    def _make_room(self, shelf: Shelf, key: str) -> None:
        if shelf.discharge(key):
            self._look_at_deferred(shelf)

    def _retry(self, engine_id: str) -> None:
        """The memory of an engine may have become free without any news but its heartbeat."""
        shelf, load = self._shelves.get(engine_id), self._engines.get(engine_id)
        if shelf is None or load is None or not shelf.deferred:
            self._deferring.discard(engine_id)
        elif shelf.num_ahead_tokens < rules.prefill_budget_tokens(load):
            self._look_at_deferred(shelf)

    def _look_at_deferred(self, shelf: Shelf) -> None:
        for _ in range(min(MAX_RETRIED, len(shelf.deferred))):
            self._look_at(shelf.deferred.pop(next(iter(shelf.deferred))))

    def _shelf(self, load: EngineLoad) -> Shelf:
        shelf = self._shelves.get(load.id)
        if shelf is None:
            shelf = self._shelves[load.id] = Shelf()
        return shelf

    def _order(self, kind: OrderKind, engine_id: str, partition: int, key: str, hint: PrefixHint | None = None) -> None:
        if not self.orders:
            self._wake()
        self.orders.append(Order(kind, engine_id, partition, key, hint))
