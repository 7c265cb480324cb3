"""Variables that cross partitions: registering importers, and relaying values out of the outboxes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from parrot_mq.errors import BadType, ConfigError, ErrorRecord
from parrot_mq.scheduler.signals import Bell
from parrot_mq.store import Store
from parrot_mq.store.scheduler import fail_import, import_variable, relay_outbox

RETRY_S = 0.25

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Import:
    importer: int
    variable: str
    tenant: str


class Imports:
    """Imports that are not registered yet, and the relay of what importers wait for.

    A variable that its home partition does not know yet is asked for again until ``want_grace_s`` has passed.
    """

    def __init__(self, store: Store, over: asyncio.Event, now_s: Callable[[], float], interval_s: float) -> None:
        self._store = store
        self._over = over
        self._now_s = now_s
        self._interval_s = interval_s
        self._pending: dict[_Import, float] = {}
        self.bell = Bell()

    def add(self, importer: int, variable: str, tenant: str) -> None:
        """Partition ``importer`` needs ``variable`` for a request of ``tenant``."""
        self._pending.setdefault(_Import(importer, variable, tenant), self._now_s())
        self.bell.ring()

    async def run(self) -> None:
        """Register and relay until the term is over."""
        while not self._over.is_set():
            for wanted, since_s in list(self._pending.items()):
                if await self._register(wanted, since_s):
                    del self._pending[wanted]
            for partition in self._store.partitions:
                while not self._over.is_set() and await relay_outbox(self._store, partition):
                    pass
            await self.bell.wait(RETRY_S if self._pending else self._interval_s)

    async def _register(self, wanted: _Import, since_s: float) -> bool:
        """Ask the home partition once; False: to be asked again."""
        try:
            status = await import_variable(self._store, wanted.importer, wanted.variable, wanted.tenant)
        except (ConfigError, BadType) as error:
            await self._fail(wanted, "InvalidRequest", str(error))
            return True
        if status == "forbidden":
            await self._fail(wanted, "Forbidden", f"variable {wanted.variable} belongs to another tenant")
        elif status == "unknown":
            if self._now_s() - since_s < self._store.settings.want_grace_s:
                return False
            await self._fail(
                wanted,
                "NeverSet",
                f"no variable has the id {wanted.variable}: await var.published() before handing an id to another "
                "session, and check that its session has not expired",
            )
        return True

    async def _fail(self, wanted: _Import, kind: str, message: str) -> None:
        log.warning("import of %s into partition %d failed: %s", wanted.variable, wanted.importer, message)
        await fail_import(self._store, wanted.importer, wanted.variable, ErrorRecord(kind, message))
