"""What hints have put on the engines: prefixes that are kept or computed there, inputs that are followed. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.hints import RETRY_MS, Hints, Order
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.plans import Plans
from parrot_mq.scheduler.policy import EngineLoad, Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.retention import Change
from parrot_mq.scheduler.prefixes import Follow, Prefix, Replica, Waiting
from parrot_mq.scheduler.shelf import Shelf
from parrot_mq.scheduler.templates import Templates

MAX_RETRIED = 4
"""Requests that are looked at again when something that was computed ahead has been read."""


class Shelves:
    """One shelf per engine. ``look_at`` is called with each request for which something has changed."""

    def __init__(
        self,
        graph: Graph,
        engines: Mapping[str, EngineLoad],
        templates: Templates,
        plans: Plans,
        duration_ms: Callable[[RequestNode], float],
        look_at: Callable[[RequestNode], None],
        wake: Callable[[], None],
        *,
        retains: bool,
    ) -> None:
        self._hints = Hints(templates, wake, retains=retains)
        self._graph = graph
        self._engines = engines
        self._plans = plans
        self._duration_ms = duration_ms
        self._look_at = look_at
        self._retains = retains
        self._shelves: dict[str, Shelf] = {}
        self._deferring: dict[str, None] = {}
        self._now_ms = self._retry_ms = 0.0

    @property
    def orders(self) -> deque[Order]:
        """Messages to send, in this order; whoever sends takes them out."""
        return self._hints.orders

    # Prefixes ---------------------------------------------------------------------------------------------------------

    def anchor(self, wait: Waiting, prefix: Prefix, load: EngineLoad, *, is_due: bool = False) -> None:
        """Keep ``prefix`` on an engine for a request, instead of what was kept for it before.

        ``is_due``: it is not there, and is to be computed.
        """
        node, shelf = wait.node, self._shelf(load.id)
        next_use_ms = rules.next_use_ms(node, self._duration_ms, self._now_ms)
        replica = prefix.replicas.get(load.id)
        if replica is None:
            replica = prefix.replicas[load.id] = shelf.replicas[prefix.key] = Replica(prefix, load.id)
        replica.is_due = replica.is_due or (is_due and not replica.is_unread)
        old, wait.anchor = wait.anchor, replica
        replica.waiting[node.id] = wait
        is_later = len(replica.waiting) == 1 or replica.next_use_ms < self._now_ms
        replica.next_use_ms = next_use_ms if is_later else min(replica.next_use_ms, next_use_ms)
        self._plans.plan(node, load.id, prefix.num_tokens)
        if self._retains:
            self._apply(shelf, shelf.retention.resize(rules.retain_budget_tokens(load)))
            self._apply(shelf, shelf.retention.want(prefix.key, prefix.num_tokens, replica.next_use_ms))
        elif replica.is_due:
            self._hints.give(replica)
        if old is not None and old is not replica:
            del old.waiting[node.id]
            self._waited_for_less(old)
            self._let_go_if_unused(old)

    def unanchor(self, wait: Waiting) -> None:
        """Keep nothing more for a request."""
        replica, wait.anchor = wait.anchor, None
        if replica is None:
            return
        if replica.reading.pop(wait.node.id, None) is None:
            del replica.waiting[wait.node.id]
            self._waited_for_less(replica)
        self._let_go_if_unused(replica)

    def read(self, wait: Waiting) -> None:
        """A request was dispatched: what was planned for it is done with, or is being read."""
        node, replica = wait.node, wait.anchor
        self.unfollow(wait)
        self._plans.unplan(node)
        if replica is None or wait.is_reading:
            return
        if replica.engine != node.engine:
            self.unanchor(wait)
            return
        replica.reading[node.id] = replica.waiting.pop(node.id)
        replica.is_unread = replica.is_due = False
        self._waited_for_less(replica)

    def _waited_for_less(self, replica: Replica) -> None:
        """One request less waits for it: nobody's wish, or somebody else's time."""
        if replica.waiting:
            self._look_at(next(iter(replica.waiting.values())).node)
            return
        shelf = self._shelves[replica.engine]
        self._make_room(shelf, replica.prefix.key)
        self._apply(shelf, shelf.retention.drop(replica.prefix.key))

    def _let_go_if_unused(self, replica: Replica) -> None:
        """After its last read, forget that it is kept."""
        if replica.reading:
            return
        shelf, key = self._shelves[replica.engine], replica.prefix.key
        if (replica.is_kept and not shelf.retention.keeps(key)) or (replica.is_unread and not replica.waiting):
            self._hints.take_back(replica)
        if not replica.waiting:
            replica.renew_ms = 0.0
            del shelf.replicas[key], replica.prefix.replicas[replica.engine]

    def _apply(self, shelf: Shelf, change: Change) -> None:
        for key in change.released:
            released = shelf.replicas.get(key)
            if released is not None and released.is_kept and not released.reading:
                self._hints.take_back(released)
        for key in change.kept:
            kept = shelf.replicas[key]
            if not kept.is_kept:
                self._hints.give(kept)

    # Inputs that are followed -----------------------------------------------------------------------------------------

    def follow(self, wait: Waiting, template: Template, key: str, load: EngineLoad, variable: VariableNode) -> None:
        """Have the tokens of ``variable`` flow into the prefill of a request on an engine."""
        node, shelf = wait.node, self._shelf(load.id)
        if wait.follow is not None and wait.follow.key == key and wait.follow.engine == load.id:
            return
        self.unfollow(wait)
        follow = shelf.follows.get(key)
        if follow is None:
            follow = shelf.follows[key] = Follow(key, load.id, node.partition, variable.id)
            self._hints.follow(follow, template, node, wait.last)
        follow.members[node.id] = wait
        wait.follow = follow
        self._plans.plan(node, load.id, wait.last.num_tokens)

    def unfollow(self, wait: Waiting) -> None:
        """A request needs the tokens of its input no longer as they come."""
        follow, wait.follow = wait.follow, None
        if follow is None:
            return
        del follow.members[wait.node.id]
        if follow.members:
            return
        shelf = self._shelves[follow.engine]
        del shelf.follows[follow.key]
        self._make_room(shelf, follow.key)
        variable = self._graph.variables.get(follow.variable_id)
        if variable is None or not variable.resolved:  # else it ends by itself
            self._hints.unfollow(follow)

    # Room for what is computed ahead ----------------------------------------------------------------------------------

    def reserve(self, wait: Waiting, load: EngineLoad, key: str, num_tokens: int) -> bool:
        """Count what is to be computed ahead; False if there is no room: the request is looked at again later."""
        self.no_longer_deferred(wait)
        shelf = self._shelf(load.id)
        if key not in shelf.ahead:
            if shelf.num_ahead_tokens + num_tokens > rules.prefill_budget_tokens(load):
                shelf.deferred[wait.node.id] = wait.node
                wait.deferred_on = load.id
                self._deferring[load.id] = None
                return False
            shelf.charge(key, num_tokens)
        return True

    def no_longer_deferred(self, wait: Waiting) -> None:
        """A request waits for room no longer."""
        shelf = self._shelves.get(wait.deferred_on)
        if shelf is not None:
            shelf.deferred.pop(wait.node.id, None)
        wait.deferred_on = ""

    def renew(self, now_ms: float) -> None:
        """Go on to this time; renew the hints to keep something that would run out, try again where memory is free."""
        self._now_ms = now_ms
        self._hints.renew(now_ms)
        if now_ms >= self._retry_ms:
            self._retry_ms = now_ms + RETRY_MS
            for engine_id in list(self._deferring):
                self._retry(engine_id)

    def _retry(self, engine_id: str) -> None:
        """The memory of an engine may have become free without any news but its heartbeat."""
        shelf, load = self._shelves.get(engine_id), self._engines.get(engine_id)
        if shelf is None or load is None or not shelf.deferred:
            del self._deferring[engine_id]
        elif shelf.num_ahead_tokens < rules.prefill_budget_tokens(load):
            self._look_at_deferred(shelf)

    def _make_room(self, shelf: Shelf, key: str) -> None:
        if shelf.discharge(key):
            self._look_at_deferred(shelf)

    def _look_at_deferred(self, shelf: Shelf) -> None:
        for _ in range(min(MAX_RETRIED, len(shelf.deferred))):
            self._look_at(shelf.deferred.pop(next(iter(shelf.deferred))))

    # Engines ----------------------------------------------------------------------------------------------------------

    def gone(self, engine_id: str) -> None:
        """An engine is no more, with all that was there."""
        shelf = self._shelves.get(engine_id)
        if shelf is None:
            return
        for follow in shelf.follows.values():
            for wait in follow.members.values():
                wait.follow = None
                self._look_at(wait.node)
        for replica in shelf.replicas.values():
            replica.renew_ms = 0.0
            del replica.prefix.replicas[engine_id]
            for wait in (*replica.waiting.values(), *replica.reading.values()):
                wait.anchor = None
                self._look_at(wait.node)
        for node in shelf.deferred.values():
            self._look_at(node)
        del self._shelves[engine_id]

    def _shelf(self, engine_id: str) -> Shelf:
        shelf = self._shelves.get(engine_id)
        if shelf is None:
            shelf = self._shelves[engine_id] = Shelf()
        return shelf

    def check(self, waits: Iterable[Waiting]) -> None:
        """Raise AssertionError unless the books agree with what stands in ``waits``, all that wait or read."""
        waits = list(waits)
        anchored = {id(wait.anchor): wait.anchor for wait in waits if wait.anchor is not None}
        follows = {id(wait.follow) for wait in waits if wait.follow is not None}
        num_replicas = 0
        for engine_id, shelf in self._shelves.items():
            shelf.check()
            num_replicas += len(shelf.replicas)
            assert {id(follow) for follow in shelf.follows.values()} <= follows
            for replica in shelf.replicas.values():
                assert replica.prefix.replicas[engine_id] is replica
                assert id(replica) in anchored
        assert num_replicas == len(anchored)
        for wait in waits:
            if (anchor := wait.anchor) is not None:
                assert (wait.node.id in anchor.waiting) is not wait.is_reading
                assert wait.node.id in anchor.prefix.members
            if wait.follow is not None:
                assert wait.follow.members[wait.node.id] is wait
