"""Reading an engine's two streams in one partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from parrot_mq.errors import Fenced, StoreError
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Assignment, Control
from parrot_workers.worker.stepper import monotonic_s

log = logging.getLogger(__name__)

BLOCK_MS = 500
"""How long one read waits: the loop looks for its end this often."""
RETRY_S = 0.1
RECHECK_S = 2.0
"""How often what was delivered is looked through again: a client that reconnects by itself hides a lost reply."""

Handler = Callable[[EngineStore, list[Assignment], list[Control]], Awaitable[None]]


async def receive_loop(
    store: EngineStore,
    engine_id: Callable[[], str],
    handle: Handler,
    fenced: Callable[[str], Awaitable[None]],
    closed: asyncio.Event,
) -> None:
    """Hand everything that arrives for the engine to ``handle`` until ``closed``.

    After a failed read, and every ``RECHECK_S``, what was delivered and not claimed is asked for again, because Redis
    counts it as delivered even if the connection broke; ``handle`` must ignore what it has already. ``fenced`` is
    awaited with the engine's id if its streams are gone, and must give it another one.
    """
    reader, control_after, checked_s = "", "0", monotonic_s()
    while not closed.is_set():
        current = engine_id()
        if current != reader:
            reader, control_after, checked_s = current, "0", monotonic_s()
        try:
            if monotonic_s() > checked_s + RECHECK_S:
                assignments, controls = await store.receive_again(reader, control_after)
                checked_s = monotonic_s()
            else:
                assignments, controls = await store.receive(reader, control_after, block_ms=BLOCK_MS)
        except Fenced as error:
            log.warning("%s", error)
            await fenced(reader)
            continue
        except (RedisConnectionError, RedisTimeoutError, StoreError, OSError) as error:
            log.warning("cannot read the queue of %s, will try again: %s", reader, error)
            checked_s = float("-inf")
            await asyncio.sleep(RETRY_S)
            continue
        if controls:
            control_after = controls[-1].entry_id
        if assignments or controls:
            await handle(store, assignments, controls)
            await asyncio.sleep(0)  # what arrived is claimed first, before Redis is busy with the next read
