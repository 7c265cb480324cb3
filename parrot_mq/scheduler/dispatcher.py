"""Applying plans: dispatches in batches, and what to make of those that the store refuses."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from parrot_mq.errors import Overloaded
from parrot_mq.messages import RequestState
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Placement, Reason, plan_json
from parrot_mq.scheduler.standing import placed
from parrot_mq.store import IdSource, Reader
from parrot_mq.store.records import DispatchItem, RequestRecord
from parrot_mq.store.scheduler import SchedulerStore

MAX_BATCH = 64
"""Dispatches in one script call."""

log = logging.getLogger(__name__)


class Dispatcher:
    """Decides and dispatches until nothing more can start. Called by whoever has changed the core."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], ids: IdSource, over: asyncio.Event) -> None:
        self._core = core
        self._stores = stores
        self._ids = ids
        self._over = over
        self._paused_until_s = 0.0
        self.num_dispatched = 0

    async def dispatch(self) -> None:
        """Start what can start now. Raises ``Fenced`` once a newer leader exists."""
        loop = asyncio.get_running_loop()
        more = True
        while more and not self._over.is_set() and loop.time() >= self._paused_until_s:
            plan = self._core.decide(loop.time() * 1000)
            more = plan.more and bool(plan.placements)
            sizes = _group_sizes(plan.placements) if self._core.groups_siblings else Counter()
            by_partition: defaultdict[int, list[Placement]] = defaultdict(list)
            for placement in plan.placements:
                by_partition[placement.request.partition].append(placement)
            for partition, placements in by_partition.items():
                for batch in _chunks(placements):
                    await self._send(self._stores[partition], batch, sizes)

    async def _send(
        self, store: SchedulerStore, batch: Sequence[Placement], sizes: Mapping[tuple[str, str], int]
    ) -> None:
        items = [
            DispatchItem(p.request.id, p.engine.id, plan_json(p.request, sizes[_group(p)]), placed(p).to_json())
            for p in batch
        ]
        tokens = [self._ids.token() for _ in batch]
        try:
            fences = await store.dispatch(items, tokens)
        except Overloaded as error:
            log.warning("dispatch of %d requests put off: %s", len(batch), error)
            self._paused_until_s = asyncio.get_running_loop().time() + min(error.retry_after_s, 1.0)
            for placement in batch:
                self._core.put_back(placement.request, engine_gone=False)
            return
        refused = []
        for placement, fence in zip(batch, fences, strict=True):
            node = placement.request
            if not fence:
                refused.append(node)
            elif node.engine == placement.engine.id:  # else news of its end, or its return, was faster than this answer
                node.fence = fence
        self.num_dispatched += len(batch) - len(refused)
        if refused:
            await self._look_again(store, refused)

    async def _look_again(self, store: SchedulerStore, refused: Sequence[RequestNode]) -> None:
        records = await Reader(store.partition).requests([node.id for node in refused])
        for node, record in zip(refused, records, strict=True):
            if self._core.graph.requests.get(node.id) is node:
                self._correct(node, record)

    def _correct(self, node: RequestNode, record: RequestRecord | None) -> None:
        if record is None or record.state.finished:
            self._core.finish(node)
        elif record.rev < node.rev:
            pass  # news of the intake was faster than this answer
        elif record.state is RequestState.READY:
            log.info("engine %s is gone or has no queue: request %s is queued again", node.engine, node.id)
            self._core.put_back(node, engine_gone=True)
        elif record.state is RequestState.WAITING:
            self._core.make_waiting(node, max(record.rev, node.rev + 1))
        else:  # dispatched already: by an earlier leader, or by a call of ours whose answer was lost
            self._core.adopt(node, record.engine, record.fence)


def _group_sizes(placements: Iterable[Placement]) -> Counter[tuple[str, str]]:
    """Count the members of each group that will be sequences of their own."""
    return Counter(_group(placement) for placement in placements if placement.reason is not Reason.FLIGHT)


def _group(placement: Placement) -> tuple[str, str]:
    """Return what placements that belong together have in common: engine and task group."""
    group = placement.request.group
    return placement.engine.id, group.id if group is not None else ""


def _chunks(placements: Iterable[Placement]) -> Iterable[tuple[Placement, ...]]:
    iterator = iter(placements)
    while batch := tuple(itertools.islice(iterator, MAX_BATCH)):
        yield batch
