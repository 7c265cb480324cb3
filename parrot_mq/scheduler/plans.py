"""Which engines the requests that wait are planned for. Placement prefers these, and is free to choose otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import EngineLoad, Fleet
from parrot_mq.scheduler.policy import ahead as rules


class Plans:
    """Writes ``planned_engine`` and ``planned_tokens`` of requests, and knows them by engine.

    ``crowded`` are the engines that at least as many are planned for as run there at once.
    """

    def __init__(self, engines: Fleet) -> None:
        self.crowded: dict[str, None] = {}
        self._engines = engines
        self._planned: dict[str, dict[str, RequestNode]] = {}

    def choose(self, node: RequestNode, reasons: Iterable[str], now_ms: float) -> EngineLoad | None:
        """Return the engine to plan a request for; None if there is none.

        ``reasons`` are engines that it would go to for a reason, the best one first; others with room that are not
        crowded are compared if these are. Where all are, it is the first of ``reasons`` that serves the request.
        ``now_ms`` is on the clock of the decisions.
        """
        preferred = [self._engines[name] for name in dict.fromkeys(reasons) if name in self._engines]
        return rules.choose(
            node, preferred, lambda: self._engines.candidates(node, now_ms, self.crowded), self.num_planned
        )

    def one_of(self, loads: Sequence[EngineLoad], node: RequestNode) -> EngineLoad:
        """Return the one of some engines that serve a request to plan it for: where it is planned, if it can be."""
        preferred = sorted(loads, key=lambda load: load.id != node.planned_engine)
        return rules.choose(node, preferred, tuple, self.num_planned) or preferred[0]

    def num_planned(self, engine_id: str) -> int:
        """Return how many requests that wait are planned for an engine."""
        return len(self._planned.get(engine_id, ()))

    def num_over(self, engine_id: str) -> int:
        """Return how many more are planned for an engine than run there at once."""
        load = self._engines.get(engine_id)
        slots = load.record.max_num_seqs if load is not None and load.record is not None else 0
        return self.num_planned(engine_id) - slots

    def plan(self, node: RequestNode, engine_id: str, num_tokens: int) -> None:
        """A request is to run on an engine, which has, or will have, so many tokens of its prompt by then."""
        if node.planned_engine != engine_id:
            self.unplan(node)
            self._planned.setdefault(engine_id, {})[node.id] = node
            self._note_crowd(engine_id)
        node.planned_engine = engine_id
        node.planned_tokens = max(node.planned_tokens, num_tokens)

    def unplan(self, node: RequestNode) -> None:
        """A request is planned for no engine (any more)."""
        engine_id = node.planned_engine
        planned = self._planned.get(engine_id)
        if planned is not None and planned.pop(node.id, None) is not None:
            if not planned:
                del self._planned[engine_id]
            self._note_crowd(engine_id)
        node.planned_engine, node.planned_tokens = "", 0

    def gone(self, engine_id: str) -> None:
        """An engine is no more: nothing is planned for it."""
        for node in self._planned.pop(engine_id, {}).values():
            node.planned_engine, node.planned_tokens = "", 0
        self.crowded.pop(engine_id, None)

    def _note_crowd(self, engine_id: str) -> None:
        if self.num_over(engine_id) >= 0 and engine_id in self._planned:
            self.crowded[engine_id] = None
        else:
            self.crowded.pop(engine_id, None)
