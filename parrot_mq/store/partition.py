"""One partition: its keys, its connections, and how a script is called in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from parrot_mq.errors import Overloaded, StoreUnavailable
from parrot_mq.keys import Keys
from parrot_mq.settings import StoreSettings
from parrot_mq.store.cluster import at_address, moved_to
from parrot_mq.store.records import Value
from parrot_mq.store.scripts import load_scripts

RETRY_S = 15.0
"""How long a call outlasts a Redis that is away (a restart, a fail-over) before ``StoreUnavailable``."""
COMMAND_TIMEOUT_S = 15.0
"""How long one command may take before its connection is given up and it is made again."""
OUT_OF_MEMORY_RETRY_S = 5.0

PASSING = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    AskError,
    TryAgainError,
    ClusterDownError,
    MasterDownError,
    OSError,
)
"""Failures that pass by themselves: a restart, a fail-over, a slot on its way to another node."""
PASSING_ANSWERS = ("ASK ", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "LOADING")
"""Their texts, where a version of redis-py makes plain answers of them."""

T = TypeVar("T")


class Clients:
    """The two connections pools of a partition: for commands, and for blocking reads.

    With ``url`` and ``make`` given they belong to a cluster's node, and are made anew when its slot moves.
    """

    def __init__(
        self,
        commands: Redis,
        blocking: Redis,
        url: str = "",
        make: Callable[..., Redis] | None = None,
    ) -> None:
        self.commands = commands
        self.blocking = blocking
        self._url = url
        self._make = make
        self._home = ""
        self._retired: list[Redis] = []

    def move(self, host: str, port: int) -> None:
        """Talk to another node from now on; commands under way on the old connections still end there."""
        home = at_address(self._url, host, port)
        if self._make is None or home == self._home:
            return
        self._home = home
        self._retired += [self.commands, self.blocking]
        self.commands, self.blocking = self._make(home), self._make(home)

    async def aclose(self) -> None:
        """Close every connection."""
        for client in (*self._retired, self.commands, self.blocking):
            await client.aclose()


class Partition:
    """One partition of the store. Role classes (producer, engine, scheduler, reader) are built on it."""

    def __init__(self, keys: Keys, clients: Clients, settings: StoreSettings) -> None:
        self.keys = keys
        self.clients = clients
        self.settings = settings
        self._scripts = load_scripts(settings)

    @property
    def redis(self) -> Redis:
        """The client for commands that do not block."""
        return self.clients.commands

    @property
    def blocking(self) -> Redis:
        """The client for blocking reads and pub/sub."""
        return self.clients.blocking

    async def call(self, name: str, *args: str | int | float) -> Any:
        """Run the script ``name`` in this partition and return its answer.

        Every script is idempotent, so that a call whose answer was lost is simply made again. Raises ``Overloaded``
        when Redis is out of memory, ``StoreUnavailable`` when it stays away for ``RETRY_S``.
        """
        script = self._scripts[name]

        async def run() -> Any:
            try:
                return await self.redis.execute_command("EVALSHA", script.sha, 1, self.keys.epoch, *args)
            except NoScriptError:
                return await self.redis.execute_command("EVAL", script.source, 1, self.keys.epoch, *args)

        return await self.robust(run)

    async def stage(self, variable_id: str, value: Value, *, raw: bool = False) -> None:
        """Write a large value to its own key, with a TTL that the script which refers to it removes.

        A value that is there already is left alone: it may be in use, and must not get a TTL again.
        """
        if not value.fence:
            return
        key = self.keys.value(variable_id, value.fence + (".raw" if raw else ""))
        ttl_ms = round(self.settings.staged_value_ttl_s * 1000)
        await self.robust(lambda: self.redis.set(key, value.text, px=ttl_ms, nx=True))

    async def now_ms(self) -> int:
        """Return the server's time, epoch milliseconds."""
        seconds, micros = await self.robust(self.redis.time)
        return int(seconds) * 1000 + int(micros) // 1000

    async def robust(self, run: Callable[[], Awaitable[T]]) -> T:
        """Await ``run()``; make it again while Redis is away or loading, or after its slot has moved.

        ``run`` must be idempotent. Raises ``StoreUnavailable`` after ``RETRY_S``.
        """
        deadline = time.monotonic() + RETRY_S
        delay_s = 0.02
        while True:
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    return await run()
            except MovedError as error:
                self.clients.move(error.host, error.port)
                problem: Exception = error
            except PASSING as error:
                problem = error
            except OutOfMemoryError:
                raise _out_of_memory() from None
            except ResponseError as error:
                problem = error
                if home := moved_to(error):
                    self.clients.move(*home)
                elif "OOM command not allowed" in str(error):  # inside another message where a script met it (6.2)
                    raise _out_of_memory() from None
                elif not str(error).startswith(PASSING_ANSWERS):
                    raise
            if time.monotonic() + delay_s > deadline:
                raise StoreUnavailable(
                    f"Redis has not answered for {RETRY_S:.0f} s: {problem or type(problem).__name__}"
                ) from problem
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.5)


def _out_of_memory() -> Overloaded:
    return Overloaded(
        "Redis is out of memory (maxmemory): raise it, or delete sessions with `parrot-mq` or wait for them to expire",
        OUT_OF_MEMORY_RETRY_S,
    )
