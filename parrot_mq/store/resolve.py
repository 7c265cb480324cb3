"""The Redis to use: one that is there, else a private one that is kept running for as long as it is needed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from parrot_mq.groups import only
from parrot_mq.store.address import masked
from parrot_mq.store.server import DATA_DIRECTORY, RedisServer, known_url, noted_url, running_url

POLL_S = 0.5


@contextlib.asynccontextmanager
async def resolve_redis(
    url: str | None = None,
    directory: Path | str = DATA_DIRECTORY,
    on_event: Callable[[str], None] = lambda event: None,
) -> AsyncIterator[str]:
    """Give the address of a Redis: ``url``, ``PARROT_MQ_REDIS_URL``, a private one that runs, else one started here.

    What is started here keeps its data in ``directory``, is started again on the same port if it crashes, and is
    stopped at the end. An address that is the folder's own means that one, also where it has to be started first.
    ``on_event`` is told in words what happens. Raises ``ConfigError`` (with the three ways) where there is none,
    ``StoreUnavailable`` where it does not start.
    """
    known, own = known_url(url, directory), running_url(directory)
    if known is not None and (known == own or known != noted_url(directory)):
        on_event(f"{masked(known)} {'runs for this folder' if known == own else 'is used, as told'}")
        yield known
        return
    async with RedisServer(directory) as server:
        on_event(f"{server.url} started for this folder, data in {directory}")
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(_keep(server, on_event))
                yield server.url
                keeping.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None


async def _keep(server: RedisServer, on_event: Callable[[str], None]) -> None:
    """Start the server again whenever it has crashed: it comes back with what it acknowledged."""
    while True:
        await asyncio.sleep(POLL_S)
        if not server.is_running:
            on_event("crashed; starting it again")
            await server.astart()
            on_event("back")
