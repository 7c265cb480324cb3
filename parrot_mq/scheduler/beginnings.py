"""How the prompts of waiting requests begin, as far as that is known, who begins alike, and which engines have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.policy import EngineLoad, Template
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.scheduler.policy.prefix import MAX_BOUNDARIES, Step, walk
from parrot_mq.scheduler.prefixes import Prefix, Waiting
from parrot_mq.scheduler.whereabouts import Whereabouts


class Beginnings:
    """Prefixes by key, with the requests that begin so as their members; freed with the last of them."""

    def __init__(self, graph: Graph, engines: Mapping[str, EngineLoad]) -> None:
        self._graph = graph
        self._engines = engines
        self._prefixes: dict[str, Prefix] = {}
        self._where = Whereabouts()

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes.values())

    def extend(self, wait: Waiting, template: Template) -> Step | None:
        """Find out how far a prompt is known by now; return the boundary behind an input that was followed, if any."""
        node = wait.node
        wait.blocker = None
        if wait.is_closed:
            return None
        behind: Step | None = None
        for step in walk(template, node, wait.last):
            wait.text_bytes += rules.text_bytes_at(template, node, step.end)
            if rules.raw_at(template, node, step.end) or wait.text_bytes > rules.MAX_TEXT_BYTES:
                wait.is_closed = True
                return behind
            if wait.followed is wait.last:
                behind = step
            wait.last = step
            if step.num_tokens >= rules.MIN_TOKENS:
                self._join(wait, step)
        if wait.last.end < min(node.prompt_end, len(template.segments)):
            name = template.segments[wait.last.end].name
            wait.blocker = self._graph.variables.get(node.bindings[name]["variable"])
        return behind

    def leave(self, wait: Waiting) -> None:
        """A request is finished."""
        for prefix in wait.prefixes:
            self._leave(wait, prefix)

    def note(self, key: str, engine_id: str) -> Prefix | None:
        """An engine has a prefix; return that if somebody begins so and it was not known to be there."""
        return self._prefixes.get(key) if self._where.note(key, engine_id) else None

    def forget(self, engine_id: str) -> None:
        """An engine is gone, with all that it had."""
        self._where.forget(engine_id)

    def resident(self, wait: Waiting) -> tuple[Prefix, list[EngineLoad]] | None:
        """Return the longest beginning that engines have, or will have, and those engines; None: none has any."""
        for prefix in reversed(wait.prefixes):
            names = (*prefix.replicas, *reversed(self._where.of(prefix.key)))
            loads = [load for name in dict.fromkeys(names) if (load := self._engines.get(name)) is not None]
            serving = [load for load in loads if rules.serves(load, wait.node)]
            if serving:
                return prefix, serving
        return None

    def cached_tokens(self, wait: Waiting, engine_id: str) -> int:
        """Return how many tokens of a prompt's known beginning an engine has, or will have."""
        for prefix in reversed(wait.prefixes):
            if engine_id in prefix.replicas or engine_id in self._where.of(prefix.key):
                return prefix.num_tokens
        return 0

    def _join(self, wait: Waiting, step: Step) -> None:
        key = rules.hint_key(step.digest, wait.node)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prefixes[key] = Prefix(key, step)
        prefix.members[wait.node.id] = wait
        wait.prefixes.append(prefix)
        if len(wait.prefixes) > MAX_BOUNDARIES:
            anchored = wait.anchor.prefix if wait.anchor is not None else None
            self._leave(wait, wait.prefixes.pop(-2 if wait.prefixes[-2] is not anchored else -3))

    def _leave(self, wait: Waiting, prefix: Prefix) -> None:
        prefix.members.pop(wait.node.id, None)
        if not prefix.members:
            self._prefixes.pop(prefix.key, None)
