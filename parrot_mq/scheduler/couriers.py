"""Small errands off the hot path: fetching templates, granting lanes, telling engines about changed objectives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.signals import Bell
from parrot_mq.store import EngineStore
from parrot_mq.store.scheduler import SchedulerStore

IDLE_S = 1.0
SLICE = 500
"""Requests described between two chances for others to run."""


class TemplateCourier:
    """Fetches the templates that requests missed, and digests those requests' prompts if they still wait."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        self._core = core
        self._stores = stores
        self._over = over
        self.bell = Bell()

    async def run(self) -> None:
        """Fetch what is missing until the term is over."""
        while not self._over.is_set():
            for key in self._core.templates.missing():
                partition, tenant, digest = key
                record = await EngineStore(self._stores[partition].partition).function(tenant, digest)
                missed = self._core.templates.store(key, record)
                for start in range(0, len(missed), SLICE):
                    self._core.describe(missed[start : start + SLICE])
                    await asyncio.sleep(0)
            await self.bell.wait(IDLE_S)


class LaneCourier:
    """Grants lanes, and takes them back."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        self._core = core
        self._stores = stores
        self._over = over
        self.bell = Bell()

    async def run(self) -> None:
        """Keep the lanes as they should be until the term is over."""
        while not self._over.is_set():
            lanes = self._core.due_lanes()
            if lanes is not None:
                self._core.lanes.granted(lanes)  # before the store has them: what is used from now on counts
                for store in self._stores:
                    await store.grant(lanes, share=len(self._stores))
            await self.bell.wait(IDLE_S)


class ObjectiveCourier:
    """Tells engines when a request that they hold was given another objective."""

    def __init__(self, core: Core, stores: Sequence[SchedulerStore], over: asyncio.Event) -> None:
        self._core = core
        self._stores = stores
        self._over = over
        self.bell = Bell()

    async def run(self) -> None:
        """Deliver until the term is over."""
        while not self._over.is_set():
            while self._core.upgraded and not self._over.is_set():
                node = self._core.upgraded.popleft()
                if node.engine and node.objective is not None:
                    store = self._stores[node.partition]
                    await store.control(node.engine, "objective", node.id, node.fence, node.objective.to_json())
            await self.bell.wait(IDLE_S)
