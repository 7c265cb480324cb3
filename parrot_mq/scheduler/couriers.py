"""Small errands off the hot path: templates, lanes, what was learned, changed objectives, hints, questions."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from parrot_mq.errors import Overloaded
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.hints import Order, OrderKind
from parrot_mq.scheduler.policy.lengths import Lengths
from parrot_mq.scheduler.signals import Bell
from parrot_mq.scheduler.standing import standing
from parrot_mq.store.scheduler import SchedulerStore
from parrot_mq.store.why import answer

log = logging.getLogger(__name__)

IDLE_S = 1.0
LENGTHS_PART = 100
"""Functions in one script call."""
SLICE = 500
"""Requests described between two chances for others to run."""
HINT_SLICE = 100
"""Requests looked at between two chances for others to run: about 2 ms."""
MAX_QUESTIONS = 1000
"""Questions that wait for an answer; who asks more hears nothing, and says so."""


class _Courier:
    """What couriers share. ``bell`` wakes one before its time."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        self._core = core
        self._stores = stores
        self._over = over
        self.bell = Bell()


class TemplateCourier(_Courier):
    """Fetches the templates that requests missed, and describes those requests anew."""

    async def run(self) -> None:
        """Fetch what is missing until the term is over."""
        while not self._over.is_set():
            for key in self._core.templates.missing():
                partition, tenant, digest = key
                record, lengths = await self._stores[partition].template(tenant, digest)
                missed = self._core.learn_function(key, record, lengths)
                for start in range(0, len(missed), SLICE):
                    self._core.describe(missed[start : start + SLICE], asyncio.get_running_loop().time())
                    await asyncio.sleep(0)
            await self.bell.wait(IDLE_S)


class LaneCourier(_Courier):
    """Grants lanes, and takes them back."""

    async def run(self) -> None:
        """Keep the lanes as they should be until the term is over."""
        while not self._over.is_set():
            lanes = self._core.grant_lanes()  # before the store has them: what is used from now on counts
            if lanes is not None:
                for store in self._stores:
                    await store.grant(lanes, share=len(self._stores), single_flight=self._core.equals.is_on)
            await self.bell.wait(IDLE_S)


class LengthCourier(_Courier):
    """Keeps what was learned of output lengths for the next leader."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event, interval_s: float) -> None:
        super().__init__(core, stores, over)
        self._interval_s = interval_s

    async def run(self) -> None:
        """Save until the term is over."""
        while not self._over.is_set():
            await self.bell.wait(self._interval_s)
            while not self._over.is_set() and (learned := self._core.lengths.changed(LENGTHS_PART)):
                by_partition: defaultdict[int, dict[tuple[str, str], Lengths]] = defaultdict(dict)
                for one in learned:
                    by_partition[one.partition][one.tenant, one.function] = one.lengths
                try:
                    for partition, lengths in by_partition.items():
                        await self._stores[partition].learn(lengths)
                except Overloaded as error:
                    log.warning("output lengths of %d functions are not saved: %s", len(learned), error)
                    break


class ObjectiveCourier(_Courier):
    """Tells engines when a request that they hold was given another objective."""

    async def run(self) -> None:
        """Deliver until the term is over."""
        while not self._over.is_set():
            while self._core.upgraded and not self._over.is_set():
                node = self._core.upgraded.popleft()
                if node.engine and node.objective is not None:
                    store = self._stores[node.partition]
                    await store.control(node.engine, "objective", node.id, node.fence, node.objective.to_json())
            await self.bell.wait(IDLE_S)


class HintCourier(_Courier):
    """Looks at requests that wait, and sends what is to be done ahead for them."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        super().__init__(core, stores, over)
        core.ahead.wake = self.bell.ring

    async def run(self) -> None:
        """Look and send until the term is over."""
        loop, ahead = asyncio.get_running_loop(), self._core.ahead
        while not self._over.is_set():
            more = self._core.look_ahead(loop.time() * 1000, HINT_SLICE)
            while ahead.orders and not self._over.is_set():
                await self._send(ahead.orders.popleft())
            if more:
                await asyncio.sleep(0)
            else:
                await self.bell.wait(IDLE_S)

    async def _send(self, order: Order) -> None:
        store = self._stores[order.partition]
        try:
            if order.hint is None:
                await store.unretain(order.engine, order.key)
            elif order.kind is OrderKind.PREFILL:
                await store.prefill(order.engine, order.hint)
            else:
                await store.retain(order.engine, order.hint)
        except Overloaded as error:
            log.debug("hint %s to %s is not given: %s", order.key, order.engine, error)


class WhyCourier(_Courier):
    """Answers those who ask why requests sit where they do."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        super().__init__(core, stores, over)
        self._asked: dict[str, int] = {}

    def ask(self, partition: int, requests: Iterable[str]) -> None:
        """Somebody asks about requests of a partition."""
        for request in requests:
            if len(self._asked) < MAX_QUESTIONS:
                self._asked[request] = partition
        self.bell.ring()

    async def run(self) -> None:
        """Answer until the term is over, one question between two chances for others to run."""
        while not self._over.is_set():
            while self._asked and not self._over.is_set():
                request = next(iter(self._asked))
                partition = self._asked.pop(request)
                now_ms = asyncio.get_running_loop().time() * 1000
                said = standing(self._core, request, now_ms)
                try:
                    await answer(self._stores[partition].partition, {request: said})
                except Overloaded as error:
                    log.warning("a question about request %s is not answered: %s", request, error)
            await self.bell.wait(IDLE_S)
