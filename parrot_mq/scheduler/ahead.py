"""Ahead of readiness: hints about the prompts of requests that wait. No I/O, no clock.

A request that waits is looked at again when something changed for it: it came, an input got its value or its producer
started, its prefix came to an engine or left one. Looking at it says which of its known beginnings is worth a hint, and
to which engine; hints are shared by all requests that begin alike, and counted by prefix, so that a thousand of them
cost one message. Hints are soft: nothing depends on one having arrived, and a new leader gives them anew.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from parrot_mq.messages import RequestState
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.policy import EngineLoad, Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.prefix import MAX_BOUNDARIES, Step, tokens_of, walk
from parrot_mq.scheduler.prefixes import Order, Prefix, Waiting
from parrot_mq.scheduler.shelves import Shelves
from parrot_mq.scheduler.templates import Templates
from parrot_mq.scheduler.whereabouts import Whereabouts
from parrot_mq.settings import SchedulerSettings

MAX_COMPARED = 64
"""Engines looked at for a request whose own ones are crowded."""


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
        engines: Mapping[str, EngineLoad],
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
        self._shelves = Shelves(
            graph, engines, templates, duration_ms, self._look_at, self._wake, retains=settings.retain_prefixes
        )
        self._waits: dict[str, Waiting] = {}
        self._prefixes: dict[str, Prefix] = {}
        self._where = Whereabouts()
        self._dirty: dict[str, RequestNode] = {}

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
        members = {(key, node_id) for key, prefix in self._prefixes.items() for node_id in prefix.members}
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
        self._dirty.pop(node.id, None)
        self._flow(node.output)
        wait = self._waits.pop(node.id, None)
        if wait is None:
            return
        self._shelves.unfollow(wait)
        self._shelves.unplan(node)
        self._shelves.unanchor(wait)
        for prefix in wait.prefixes:
            self._leave(prefix, node)
        self._shelves.no_longer_deferred(wait)

    def engine_gone(self, engine_id: str) -> None:
        """An engine is no more, with all that hints had put there."""
        self._shelves.gone(engine_id)

    # Looking at requests ----------------------------------------------------------------------------------------------

    def settle(self, now_ms: float, limit: int) -> bool:
        """Look at up to ``limit`` requests, and renew what runs out; True: there is more to look at.

        ``now_ms`` is of any monotonic clock, always the same one.
        """
        self._shelves.renew(now_ms)
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

    def _settle(self, node: RequestNode) -> None:
        template = self._templates.get(node)
        if template is None:
            return  # it is on its way
        wait = self._waits.get(node.id) or self._begin(node)
        self._extend(wait, template)
        if self._computes_ahead(wait, template):
            return
        if self._retains and (found := self._resident(wait)) is not None:
            prefix, load = found
            if rules.is_worth(load, prefix.num_tokens):
                self._shelves.anchor(wait, prefix, load)

    def _begin(self, node: RequestNode) -> Waiting:
        missing = sum(not variable.flows for variable in node.inputs)
        wait = self._waits[node.id] = Waiting(node, missing)
        return wait

    def _extend(self, wait: Waiting, template: Template) -> None:
        """Find out how far the prompt is known by now."""
        node = wait.node
        wait.blocker = None
        if wait.is_closed:
            return
        for step in walk(template, node, wait.last):
            wait.text_bytes += rules.text_bytes_at(template, node, step.end)
            if rules.raw_at(template, node, step.end) or wait.text_bytes > rules.MAX_TEXT_BYTES:
                wait.is_closed = True
                return
            if wait.followed is wait.last:
                self._is_at(rules.hint_key(step.digest, node), wait.followed_on, node)
            wait.last = step
            if step.num_tokens >= rules.MIN_TOKENS:
                self._join(wait, step)
        if wait.last.end < min(node.prompt_end, len(template.segments)):
            name = template.segments[wait.last.end].name
            wait.blocker = self._graph.variables.get(node.bindings[name]["variable"])

    def _join(self, wait: Waiting, step: Step) -> None:
        key = rules.hint_key(step.digest, wait.node)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = Prefix(key, step)
        prefix.members[wait.node.id] = wait
        wait.prefixes.append(prefix)
        if len(wait.prefixes) > MAX_BOUNDARIES:
            middle = -2 if wait.prefixes[-2] is not wait.anchor else -3
            self._leave(wait.prefixes.pop(middle), wait.node)

    def _leave(self, prefix: Prefix, node: RequestNode) -> None:
        prefix.members.pop(node.id, None)
        if not prefix.members:
            self._prefixes.pop(prefix.key, None)

    def _resident(self, wait: Waiting) -> tuple[Prefix, EngineLoad] | None:
        """Return the longest beginning that an engine has, and that engine."""
        for prefix in reversed(wait.prefixes):
            load = self._engines.get(prefix.engine or self._where.get(prefix.key))
            if load is not None and rules.serves(load, wait.node):
                return prefix, load
        return None

    # Computing ahead --------------------------------------------------------------------------------------------------

    def _computes_ahead(self, wait: Waiting, template: Template) -> bool:
        """Have the known beginning computed and the input behind it followed, if that is worth it and there is room."""
        node, blocker, last = wait.node, wait.blocker, wait.last
        if node.state is not RequestState.WAITING or blocker is None or wait.num_missing or not last.end:
            return False
        found = self._resident(wait)
        producer = blocker.producer
        others = itertools.islice(self._engines.values(), MAX_COMPARED)
        load = rules.choose(node, self._preferred(wait, found), others, self._shelves.num_planned)
        if load is None:
            return False
        cached = found[0].num_tokens if found is not None and found[1] is load else 0
        num_new, num_followed = last.num_tokens - cached, 0
        if self._streamed and producer is not None and rules.streams(node, blocker):
            runs_on = self._engines.get(producer.engine)
            if runs_on is not None and runs_on.model == load.model:
                num_followed = producer.output_tokens
        prefix = wait.prefixes[-1] if wait.prefixes else None
        follows = num_followed > 0 and rules.is_worth(load, num_new + num_followed, cached)
        if not follows:
            if not self._eager or prefix is None or not rules.is_worth(load, num_new, cached):
                return False
            if prefix.engine not in ("", load.id):
                return False  # others keep it elsewhere: one copy is enough to be made unasked
        key = f"{rules.hint_key(last.digest, node)}:{blocker.id}" if follows or prefix is None else prefix.key
        if not self._shelves.reserve(wait, load, key, num_new + (num_followed if follows else 0)):
            return False
        if prefix is not None and prefix.engine in ("", load.id):
            prefix.is_due = not follows and cached < prefix.num_tokens
            self._shelves.anchor(wait, prefix, load)
        if follows:
            self._shelves.follow(wait, template, key, load, blocker)
        return True

    def _preferred(self, wait: Waiting, found: tuple[Prefix, EngineLoad] | None) -> Iterable[EngineLoad]:
        node, blocker = wait.node, wait.blocker
        producer = blocker.producer if blocker is not None else None
        names = (
            node.planned_engine,
            found[1].id if found is not None else "",
            node.group.engine if node.group is not None else "",
            producer.engine if producer is not None else "",
        )
        return [self._engines[name] for name in dict.fromkeys(names) if name in self._engines]

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
        """Note that an engine has a prefix because of ``reader``; if nobody had it, others who begin so look again."""
        is_new = self._where.get(key) not in self._engines
        self._where.note(key, engine_id)
        prefix = self._prefixes.get(key) if self._retains and is_new else None
        if prefix is not None and not prefix.engine:
            for wait in prefix.members.values():
                if wait.node is not reader:
                    self._look_at(wait.node)
