"""Ahead of readiness: hints about the prompts of requests that wait. No I/O, no clock.

A request that waits is looked at again when something changed for it: it came, an input got its value or its producer
started, its prefix came to an engine or left one. Looking at it says which of its known beginnings is worth a hint, and
to which engine; hints are shared by all requests that begin alike, and counted by prefix, so that a thousand of them
cost one message. Hints are soft: nothing depends on one having arrived, and a new leader gives them anew.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable

from parrot_mq.messages import RequestState
from parrot_mq.scheduler.beginnings import Beginnings
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.hints import RETRY_MS, Order
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.plans import Plans
from parrot_mq.scheduler.policy import Fleet, Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.prefix import tokens_of
from parrot_mq.scheduler.prefixes import Waiting
from parrot_mq.scheduler.shelves import Shelves
from parrot_mq.scheduler.templates import Templates
from parrot_mq.settings import SchedulerSettings

MAX_RETRIED = 16
"""Requests without an engine to plan them for that are looked at again each ``RETRY_MS``, and whenever one finds some.
"""


class Ahead:
    """Hints of one term. ``wake`` is called when ``settle`` or the sender of ``orders`` has something to do.

    Memory is proportional to the unfinished requests that were not dispatched when they were last looked at.
    """

    image_without = ("wake",)
    wake: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        settings: SchedulerSettings,
        graph: Graph,
        engines: Fleet,
        templates: Templates,
        duration_ms: Callable[[RequestNode], float],
    ) -> None:
        self._eager = settings.eager_prefill
        self._streamed = settings.streamed_prefill
        self._retains = settings.retain_prefixes
        self._is_on = self._eager or self._streamed or self._retains
        self._graph = graph
        self._engines = engines
        self._templates = templates
        self._beginnings = Beginnings(graph, engines)
        self._plans = Plans(engines)
        self._shelves = Shelves(
            graph, engines, templates, self._plans, duration_ms, self._look_at, self._wake, retains=self._retains
        )
        self._waits: dict[str, Waiting] = {}
        self._dirty: dict[str, RequestNode] = {}
        self._unplaced: dict[str, RequestNode] = {}
        """Those whose prompt could be computed ahead if there were an engine for it."""
        self._now_ms = self._retry_ms = 0.0

    @property
    def orders(self) -> deque[Order]:
        """Messages to send, in this order; whoever sends takes them out."""
        return self._shelves.orders

    @property
    def num_waiting(self) -> int:
        """Requests that are remembered."""
        return len(self._waits)

    def check(self) -> None:
        """Raise AssertionError if the books are wrong."""
        self._shelves.check(self._waits.values())
        members = {(prefix.key, node_id) for prefix in self._beginnings for node_id in prefix.members}
        assert members == {(prefix.key, node_id) for node_id, wait in self._waits.items() for prefix in wait.prefixes}
        for wait in self._waits.values():
            assert wait.num_missing == sum(not variable.flows for variable in wait.node.inputs)

    # News -------------------------------------------------------------------------------------------------------------

    def added(self, node: RequestNode) -> None:
        """A request was submitted."""
        if self._is_on and node.state is RequestState.WAITING:
            self._begin(node)
            self._look_at(node)

    def queued(self, node: RequestNode) -> None:
        """A request is ready; if it is not dispatched at once, its prefix is kept as those of the others."""
        if self._retains:
            self._look_at(node)

    def described(self, nodes: Iterable[RequestNode]) -> None:
        """The template of these requests is here."""
        if self._is_on:
            for node in nodes:
                self._look_at(node)

    def resolved(self, variable: VariableNode) -> None:
        """A variable has its value."""
        if not self._is_on:
            return
        self._flow(variable)
        for consumer in variable.consumers.values():
            wait = self._waits.get(consumer.id)
            if wait is not None and wait.blocker is variable:
                if (follow := wait.follow) is not None:
                    wait.followed, wait.followed_on = wait.last, follow.engine
                    consumer.planned_tokens += tokens_of(variable.size_bytes)
                    self._shelves.unfollow(wait)
                self._look_at(consumer)

    def dispatched(self, node: RequestNode) -> None:
        """A request went to its ``engine``: its output is being produced, and its prefix is there."""
        if not self._is_on:
            return
        self._flow(node.output)
        for digest, num_tokens in node.prefix:
            if num_tokens >= rules.MIN_TOKENS:
                self._is_at(rules.hint_key(digest, node), node.engine, node)
        wait = self._waits.get(node.id)
        if wait is not None:
            self._shelves.read(wait)
            self._unplaced.pop(node.id, None)

    def undispatched(self, node: RequestNode) -> None:
        """A request was given back, or failed and will be tried again."""
        if not self._is_on:
            return
        self._flow(node.output)
        wait = self._waits.get(node.id)
        if wait is not None and wait.is_reading:
            self._shelves.unanchor(wait)
        self._look_at(node)

    def finished(self, node: RequestNode) -> None:
        """A request is done, dead or cancelled, and out of the graph: it has read what it ever will."""
        if not self._is_on:
            return
        for nodes in (self._dirty, self._unplaced):
            nodes.pop(node.id, None)
        self._flow(node.output)
        wait = self._waits.pop(node.id, None)
        if wait is None:
            return
        self._shelves.unfollow(wait)
        self._plans.unplan(node)
        self._shelves.unanchor(wait)
        self._beginnings.leave(wait)
        self._shelves.no_longer_deferred(wait)

    def engine_gone(self, engine_id: str) -> None:
        """An engine is no more, with all that hints had put there."""
        self._beginnings.forget(engine_id)
        self._plans.gone(engine_id)
        self._shelves.gone(engine_id)

    # Looking at requests ----------------------------------------------------------------------------------------------

    def settle(self, now_ms: float, limit: int) -> bool:
        """Look at up to ``limit`` requests, and renew what runs out; True: there is more to look at.

        ``now_ms`` is on the clock of the decisions.
        """
        self._now_ms = now_ms
        self._shelves.renew(now_ms)
        if self._unplaced and now_ms >= self._retry_ms:
            self._retry_ms = now_ms + RETRY_MS
            self._look_at_unplaced()
        for _ in range(min(limit, len(self._dirty))):
            node = self._dirty.pop(next(iter(self._dirty)))
            if self._graph.requests.get(node.id) is node and not node.engine:
                self._settle(node)
        return bool(self._dirty)

    def _wake(self) -> None:
        self.wake()

    def _look_at(self, node: RequestNode) -> None:
        if not self._dirty:
            self.wake()
        self._dirty[node.id] = node

    def _look_at_unplaced(self) -> None:
        for node in itertools.islice(self._unplaced.values(), MAX_RETRIED):
            self._look_at(node)

    def _settle(self, node: RequestNode) -> None:
        template = self._templates.get(node)
        if template is None:
            return  # it is on its way
        wait = self._waits.get(node.id) or self._begin(node)
        behind = self._beginnings.extend(wait, template)
        if behind is not None:
            self._is_at(rules.hint_key(behind.digest, node), wait.followed_on, node)
        if self._computes_ahead(wait, template) or not self._retains:
            return
        found = self._beginnings.resident(wait)
        if found is None:
            return
        prefix, holders = found
        load = self._plans.one_of(holders, node)
        if rules.is_worth(load, prefix.num_tokens):
            self._shelves.anchor(wait, prefix, load)

    def _begin(self, node: RequestNode) -> Waiting:
        missing = sum(not variable.flows for variable in node.inputs)
        wait = self._waits[node.id] = Waiting(node, missing)
        return wait

    # Computing ahead --------------------------------------------------------------------------------------------------

    def _computes_ahead(self, wait: Waiting, template: Template) -> bool:
        """Have the known beginning computed and the input behind it followed, if that is worth it and there is room."""
        node, blocker, last = wait.node, wait.blocker, wait.last
        was_unplaced = self._unplaced.pop(node.id, None) is not None
        if node.state is not RequestState.WAITING or blocker is None or wait.num_missing:
            return False
        load = self._plans.choose(node, self._reasons(wait), self._now_ms)
        if load is None:
            self._unplaced[node.id] = node
            return False
        if was_unplaced:
            self._look_at_unplaced()
        producer = blocker.producer
        cached = self._beginnings.cached_tokens(wait, load.id)
        num_new, num_followed = last.num_tokens - cached, 0
        if self._streamed and producer is not None and rules.streams(node, blocker):
            runs_on = self._engines.get(producer.engine)
            if runs_on is not None and runs_on.model == load.model:
                num_followed = producer.output_tokens
        prefix = wait.prefixes[-1] if wait.prefixes else None
        follows = num_followed > 0 and rules.is_worth(load, num_new + num_followed, cached)
        if not follows:
            if prefix is not None and load.id in prefix.replicas:  # others have seen to it
                self._shelves.anchor(wait, prefix, load)
                return True
            if not self._eager or prefix is None or not rules.is_worth(load, num_new, cached):
                return False
        key = f"{rules.hint_key(last.digest, node)}:{blocker.id}" if follows or prefix is None else prefix.key
        if not self._shelves.reserve(wait, load, key, num_new + (num_followed if follows else 0)):
            return False
        if prefix is not None:
            self._shelves.anchor(wait, prefix, load, is_due=not follows and cached < prefix.num_tokens)
        if follows:
            self._shelves.follow(wait, template, key, load, blocker)
        return True

    def _reasons(self, wait: Waiting) -> Iterable[str]:
        """Return the engines that a request would go to for a reason, the best one first."""
        node, blocker = wait.node, wait.blocker
        yield node.planned_engine
        found = self._beginnings.resident(wait)
        if found is not None:
            yield from (load.id for load in found[1])
        if node.group is not None:
            yield node.group.engine
        if blocker is not None and blocker.producer is not None:
            yield blocker.producer.engine

    # Small books ------------------------------------------------------------------------------------------------------

    def _flow(self, variable: VariableNode) -> None:
        """Note whether a variable has its value, or a producer that runs, and tell those who read it."""
        flows = variable.resolved or (variable.producer is not None and bool(variable.producer.engine))
        if flows is variable.flows:
            return
        variable.flows = flows
        for consumer in variable.consumers.values():
            wait = self._waits.get(consumer.id)
            if wait is not None:
                wait.num_missing += -1 if flows else 1
                if not wait.num_missing:
                    self._look_at(consumer)

    def _is_at(self, key: str, engine_id: str, reader: RequestNode) -> None:
        """Note that an engine has a prefix because of ``reader``; if that is news, others who begin so look again.

        All of them if nobody had it; else those for whom there is no slot where they are planned, as many as have one
        here.
        """
        prefix = self._beginnings.note(key, engine_id)
        if prefix is None or not self._retains:
            return
        if not prefix.replicas:
            for wait in prefix.members.values():
                if wait.node is not reader:
                    self._look_at(wait.node)
        slots = -self._plans.num_over(engine_id)
        for replica in prefix.replicas.values() if slots > 0 else ():
            num_over = min(slots, max(0, self._plans.num_over(replica.engine)))
            for wait in itertools.islice(reversed(replica.waiting.values()), num_over):
                self._look_at(wait.node)
