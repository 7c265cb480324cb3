"""The engines, indexed so that a decision looks at a few of them, however many there are."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from parrot_mq.messages import EngineRecord
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.books import is_throughput, is_urgent
from parrot_mq.scheduler.policy.company import Company
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.outlook import SIZES
from parrot_mq.scheduler.policy.ranking import Ranking
from parrot_mq.scheduler.policy.residency import Holders
from parrot_mq.scheduler.policy.room_ranking import RoomRanking

MIN_SHARED_TOKENS = 32
"""A shared beginning shorter than two blocks is not worth a detour."""
NUM_BEST = 2
"""Engines of a ranking that a request is compared on."""
MAX_DRIFT = 0.1
"""An engine is not ranked anew for a backlog of prompts that makes up less of its score: it is soon gone."""
NUM_HOLDERS = 2
"""Holders of its prefix that it is compared on besides."""


class Standing(enum.IntEnum):
    """What an engine with room takes."""

    FREE = 0
    PROMISED = 1
    """A time per token was promised to somebody there: it may refuse what is long."""
    PACED = 2
    """It takes no throughput work for now, for the sake of urgent requests."""


class _Pool:
    """The engines with room of one model (of all, for requests that take any), ranked."""

    __slots__ = ("headroom", "scores")

    def __init__(self) -> None:
        self.scores = tuple(tuple(RoomRanking() for _ in SIZES) for _ in Standing)
        self.headroom = Ranking()

    def put(self, engine_id: str, standing: Standing, scores_ms: Iterable[float], headroom: float) -> None:
        for ranking, score_ms in zip(self.scores[standing], scores_ms, strict=True):
            ranking.put(engine_id, score_ms, headroom)
        self.headroom.put(engine_id, -headroom)

    def remove(self, engine_id: str, standing: Standing) -> None:
        for ranking in self.scores[standing]:
            ranking.discard(engine_id)
        self.headroom.discard(engine_id)


class Fleet(Mapping[str, EngineLoad]):
    """All engines by id, and which of them a request should be compared on.

    Engines with room are ranked per model by the predicted completion of a usual request (``Outlook.scores_ms``, which
    has wait, step and harm in it), apart for short and long outputs, so that those with room for a request are found
    first. An engine is ranked anew after it has changed, when a backlog of prompts is prefilled, and when its pace
    beside urgent requests allows throughput work again; prefixes lead to the engines that hold them. So finding
    candidates costs the logarithm of the number of engines, and exact predictions are made for candidates only.
    """

    def __init__(self, queue_depth_steps: float = 2.0, *, affinity: bool = True) -> None:
        self._queue_depth_steps = queue_depth_steps
        self._affinity = affinity
        self._loads: dict[str, EngineLoad] = {}
        self._holders = Holders()
        self.company = Company()
        self._dirty: dict[str, None] = {}
        self._due = Ranking()
        self._next_due_ms = math.inf
        self._ranked: dict[str, tuple[str, Standing]] = {}
        """The engines with room: under which model and standing they are ranked."""
        self._open: set[str] = set()
        self._pools: dict[str, _Pool] = {}
        """Per model that is served, and "" for all engines once a request takes any."""

    # As a mapping -----------------------------------------------------------------------------------------------------

    def __getitem__(self, engine_id: str) -> EngineLoad:
        return self._loads[engine_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loads)

    def __len__(self) -> int:
        return len(self._loads)

    def load_of(self, engine_id: str) -> EngineLoad:
        """Return the load of an engine, made if it is new."""
        load = self._loads.get(engine_id)
        if load is None:
            load = self._loads[engine_id] = EngineLoad(
                engine_id,
                self._queue_depth_steps,
                affinity=self._affinity,
                holders=self._holders,
                changed=self._note,
            )
        return load

    def update(self, records: Mapping[str, EngineRecord | None]) -> None:
        """Take in what every engine says about itself; None, or missing: it has no heartbeat (any more)."""
        for engine_id, record in records.items():
            self.load_of(engine_id).update(record)
        for engine_id, load in self._loads.items():
            if engine_id not in records:
                load.update(None)

    def pop(self, engine_id: str) -> EngineLoad | None:
        """Drop an engine; None if there is none of this id."""
        load = self._loads.get(engine_id)
        if load is not None:
            load.forget()
            self._rank(load, 0.0)
            self._dirty.pop(engine_id, None)
            del self._loads[engine_id]
        return load

    # Candidates -------------------------------------------------------------------------------------------------------

    def open_models(self, now_ms: float, kept: Collection[str] = ()) -> set[str]:
        """Return the models with an engine that has room and is not one of ``kept``; with ``""`` if there is any."""
        self._refresh(now_ms)
        if not kept:
            return self._open
        found = {model for model in self._open if model and self._has_open(model, kept)}
        return found | {""} if found else found

    def _has_open(self, model: str, kept: Collection[str]) -> bool:
        headroom = self._pools[model].headroom
        return len(headroom) > len(kept) or len(headroom) > sum(engine_id in headroom for engine_id in kept)

    def is_open(self, engine_id: str, model: str, kept: Collection[str] = ()) -> bool:
        """Whether an engine has room, serves ``model`` and is not one of ``kept``."""
        ranked = self._ranked.get(engine_id)
        return ranked is not None and (not model or ranked[0] == model) and engine_id not in kept

    def candidates(
        self, node: RequestNode, now_ms: float, kept: Collection[str] = (), count: int = NUM_BEST
    ) -> list[EngineLoad]:
        """Return the engines with room that ``node`` should be compared on, none of ``kept``.

        They are the ``count`` best by rank, as many of those with promises to keep, some that hold its longest prefix,
        the engine of its task group and the one that it was planned for. Those held off for throughput work are among
        them only for other work. Where the whole request fits nowhere, only those that hold a part of it are; where it
        fits nowhere even so, none.
        """
        self._refresh(now_ms)
        pool = self._pool(node.model, now_ms)
        best = pool.headroom.first(1)
        most = -best[0][0] if best else -math.inf
        if most < node.prompt_tokens + node.output_tokens - self._most_cached(node):
            return []
        names = self._ranked_best(node, pool, kept, count)
        for name in self._attracting(node, kept):
            if name not in names:
                names.append(name)
        return [self._loads[name] for name in names]

    def _most_cached(self, node: RequestNode) -> int:
        if not self._affinity:
            return 0
        cached = self._holders.most_tokens(node.prefix)
        return max(cached, node.planned_tokens) if node.planned_engine else cached

    def _ranked_best(self, node: RequestNode, pool: _Pool, kept: Collection[str], count: int) -> list[str]:
        need = node.prompt_tokens + node.reserved_tokens
        size = node.output_tokens > (SIZES[0][1] + SIZES[1][1]) // 4
        free, promised, paced = pool.scores
        found = free[size].best(need, count, kept)
        if not is_throughput(node):
            found = sorted(found + paced[size].best(need, count, kept))[:count]
        found += promised[size].best(need, count, kept)
        return [name for _, name, _ in found]

    def companies(self, node: RequestNode, now_ms: float, kept: Collection[str] = ()) -> list[EngineLoad]:
        """Return engines, none of ``kept``, where ``node`` had better join urgent requests, the best first."""
        if not is_urgent(node):
            return []
        self._refresh(now_ms)
        return [self._loads[name] for name in self.company.companies(node.model, now_ms, kept)]

    def roomiest(self, model: str, now_ms: float, kept: Collection[str] = ()) -> EngineLoad | None:
        """Return the engine of the most headroom, none of ``kept``: where it does not fit, a request fits nowhere."""
        self._refresh(now_ms)
        for _, name in self._pool(model, now_ms).headroom.first(1 + len(kept)):
            if name not in kept:
                return self._loads[name]
        return None

    def is_pacing(self, model: str, now_ms: float) -> bool:
        """Whether an engine with room holds throughput work off for now."""
        self._refresh(now_ms)
        return bool(self._pool(model, now_ms).scores[Standing.PACED][0])

    def _attracting(self, node: RequestNode, kept: Collection[str]) -> list[str]:
        model = node.model
        found = [node.planned_engine] if node.planned_engine else []
        if node.group is not None and node.group.engine:
            found.append(node.group.engine)
        found = [engine_id for engine_id in found if self.is_open(engine_id, model, kept)]
        if self._affinity and node.prefix:
            for some in self._holders.some_of(node.prefix, MIN_SHARED_TOKENS, NUM_HOLDERS):
                if held := [engine_id for engine_id in some if self.is_open(engine_id, model, kept)]:
                    return found + held
        return found

    # Ranks ------------------------------------------------------------------------------------------------------------

    def _note(self, load: EngineLoad) -> None:
        self._dirty[load.id] = None

    def _pool(self, model: str, now_ms: float) -> _Pool:
        pool = self._pools.get(model)
        if pool is None:
            pool = _Pool()
            if not model:
                self._pools[model] = pool
                self._dirty.update(dict.fromkeys(self._ranked))
                self._refresh(now_ms)
        return pool

    def _refresh(self, now_ms: float) -> None:
        """Rank anew what has changed, or was to be looked at again by now."""
        if now_ms >= self._next_due_ms:
            for engine_id in self._due.due(now_ms):
                self._dirty[engine_id] = None
            self._next_due_ms = next((due_ms for due_ms, _ in self._due.first(1)), math.inf)
        if self._dirty:
            for engine_id in self._dirty:
                self._rank(self._loads[engine_id], now_ms)
            self._dirty.clear()

    def _rank(self, load: EngineLoad, now_ms: float) -> None:
        before, outlook = self._ranked.get(load.id), load.outlook
        self.company.note(load, now_ms)
        if outlook.room <= 0:
            if before is not None:
                self._unrank(load.id, before)
            return
        paced_until_ms = load.paced_until_ms(now_ms)
        standing = Standing.FREE
        if paced_until_ms > now_ms:
            standing = Standing.PACED
        elif load.bound_ms:
            standing = Standing.PROMISED
        now = load.model, standing
        if before is not None and before != now:
            self._unrank(load.id, before)
        self._ranked[load.id] = now
        scores_ms, headroom = outlook.scores_ms(now_ms), outlook.headroom
        if load.model not in self._pools:
            self._pools[load.model] = _Pool()
            self._open |= {load.model, ""}
        for model in (load.model, ""):
            if (pool := self._pools.get(model)) is not None:
                pool.put(load.id, standing, scores_ms, headroom)
        due_ms = paced_until_ms if paced_until_ms > now_ms else math.inf
        backlog_ms = outlook.prefill_until_ms - now_ms
        if backlog_ms > MAX_DRIFT * scores_ms[0]:
            due_ms = min(due_ms, outlook.prefill_until_ms)
        if due_ms < math.inf:
            self._due.put(load.id, due_ms)
            self._next_due_ms = min(self._next_due_ms, due_ms)
        else:
            self._due.discard(load.id)

    def _unrank(self, engine_id: str, before: tuple[str, Standing]) -> None:
        model, standing = before
        del self._ranked[engine_id]
        self._due.discard(engine_id)
        for name in (model, ""):
            if (pool := self._pools.get(name)) is not None:
                pool.remove(engine_id, standing)
        if not self._pools[model].headroom:
            del self._pools[model]
            self._open.discard(model)
            if not self._ranked:
                self._open.clear()
