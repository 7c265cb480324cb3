"""Redis inside the process: fakeredis, made the same in every run, and able to fail when told to."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from parrot_mq.errors import ConfigError
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.ids import IdSource
from parrot_mq.store.pool import pack
from parrot_workers.simulation.wire import Loss, Wire

try:
    import fakeredis
    import lupa  # noqa: F401 - fakeredis runs the scripts with it
    from fakeredis._helpers import NoResponse, SimpleError
    from fakeredis.aioredis import AsyncFakeSocket, FakeAsyncRedisConnection, FakeReader, FakeWriter
except ImportError:
    raise ConfigError("a simulation needs fakeredis with Lua: pip install 'parrot-mq[sim]'") from None

URL = "redis://simulated"
MAX_CONNECTIONS = 10_000
COLLECT_EVERY = 256
"""Script calls between two collections of Lua's garbage."""


class _Socket(AsyncFakeSocket):
    """The server's end of a connection.

    fakeredis wakes every blocked read at every change, and does not block group reads that have a COUNT; here a read
    waits for its own keys.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keys: tuple[bytes, ...] = ()
        self._waiting: _BlockedRead | None = None

    def __hash__(self) -> int:
        # fakeredis keeps these in sets, which are gone through in the order of the hash: the same in every run.
        return int(self._client_info["id"])

    def __eq__(self, other: object) -> bool:
        return self is other

    def xread(self, *args: bytes) -> Any:
        """XREAD, its keys noted."""
        self._keys = _streams(args)
        return super().xread(*args)

    def xreadgroup(self, *args: bytes) -> Any:
        """XREADGROUP, its keys noted; where the stream is gone it answers as Redis does."""
        self._keys = _streams(args)
        for key in self._keys:
            if key not in self._db:
                raise SimpleError(f"NOGROUP No such key '{key.decode()}' or consumer group in XREADGROUP")
        return super().xreadgroup(*args)

    def _get_server_runtime(self, server: Any) -> Any:
        runtime = super()._get_server_runtime(server)
        if not isinstance(runtime, _CompiledScripts):
            runtime = server._lua_runtime = _CompiledScripts(runtime)
        return runtime

    def hang_up(self) -> None:
        """End what is under way for a connection that is closed."""
        if self._waiting is not None:
            self._waiting.end()

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], Any], shape: Callable[[Any], Any] | None = None
    ) -> Any:
        shape = shape or _as_it_is
        found = func(True)
        if found or self._in_transaction:
            return shape(found or None)
        self.pause()
        self._waiting = _BlockedRead(self, self._db, self._keys, timeout or None, func, shape)
        return NoResponse()

    def answer(self, answer: Any) -> None:
        """Answer the read that waits, and go on with what came after it."""
        self._waiting = None
        self.put_response(self._decode_result(answer))
        self.resume()


class _CompiledScripts:
    """A Lua runtime that compiles each script once.

    fakeredis compiles a script at every call and then collects all of Lua's garbage, which takes longer than most of
    ours run.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._compiled: dict[bytes, Callable[[], Any]] = {}
        self._num_collections = 0

    def execute(self, code: bytes | str) -> Any:
        """Run a chunk."""
        if code == "collectgarbage()":
            self._num_collections += 1
            if self._num_collections % COLLECT_EVERY:
                return None
        if isinstance(code, str):
            return self._runtime.execute(code)
        compiled = self._compiled.get(code)
        if compiled is None:
            compiled = self._compiled[code] = self._runtime.compile(code)
        return compiled()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def _as_it_is(found: Any) -> Any:
    return found


def _streams(args: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the keys of XREAD's or XREADGROUP's arguments: ... STREAMS key ... id ..."""
    start = next(index for index, arg in enumerate(args) if arg.upper() == b"STREAMS") + 1
    return args[start : start + (len(args) - start) // 2]


class _BlockedRead:
    """A read of streams that waits for entries of ``keys``, for ``timeout_s`` (None: for ever)."""

    def __init__(
        self,
        socket: _Socket,
        database: Any,
        keys: tuple[bytes, ...],
        timeout_s: float | None,
        look: Callable[[bool], Any],
        shape: Callable[[Any], Any],
    ) -> None:
        self._socket = socket
        self._database = database
        self._keys = keys
        self._look = look
        self._shape = shape
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._finish, None) if timeout_s is not None else None
        self._is_due = self._is_over = False
        for key in keys:
            database.add_watch(key, self)

    def notify_watch(self) -> None:
        """One of the keys was changed, by a command that is still under way."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._look_again)

    def end(self) -> None:
        """Wait no longer."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        for key in self._keys:
            self._database.remove_watch(key, self)

    def _look_again(self) -> None:
        self._is_due = False
        if not self._is_over and (found := self._look(False)):
            self._finish(found)

    def _finish(self, found: Any) -> None:
        self.end()
        self._socket.answer(self._shape(found))


class _Connection(FakeAsyncRedisConnection):
    """A connection over a ``wire``, which may lose what goes over it."""

    def __init__(self, *args: Any, wire: Wire, **options: Any) -> None:
        self._wire = wire
        self._lost_reply = False
        super().__init__(*args, **options)

    async def _connect(self) -> None:
        self._wire.check()
        self._sock = _Socket(
            self._server,
            self.db,
            client_class=self._client_class,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )
        self._reader, self._writer = FakeReader(self._sock), FakeWriter(self._sock)
        self._wire.attach(self, functools.partial(self._sock.put_response, self._wire.broken()))

    async def disconnect(self, nowait: bool = False, **options: Any) -> None:
        """Leave the wire."""
        self._wire.detach(self)
        self._lost_reply = False
        if isinstance(self._sock, _Socket):
            self._sock.hang_up()
        await super().disconnect(nowait=nowait, **options)

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as bytes."""
        return [pack((*str(args[0]).split(), *args[1:]))]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, unless the wire loses it."""
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        try:
            loss = self._wire.send()
            if loss is Loss.REQUEST:
                raise self._wire.broken()
        except RedisConnectionError:
            await self.disconnect(nowait=True)
            raise
        self._lost_reply = loss is Loss.REPLY
        await super().send_packed_command(command, check_health=False)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read an answer, unless the wire loses it."""
        answer = await super().read_response(*args, **options)
        if self._lost_reply or self._wire.is_cut:
            await self.disconnect(nowait=True)
            raise self._wire.broken()
        return answer


class _Pool(ConnectionPool):
    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect; what is broken says so in its next command."""
        await connection.connect()


class MemoryRedis:
    """One server in memory."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._server = fakeredis.FakeServer()

    async def open(self, wire: Wire, ids: IdSource) -> Store:
        """Connect a component over ``wire``; random parts of its ids come from ``ids``."""
        pool = _Pool(
            connection_class=_Connection,
            max_connections=MAX_CONNECTIONS,
            decode_responses=True,
            protocol=2,
            socket_timeout=None,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 6),
            retry_on_error=[RedisConnectionError],
            version=(7, 4),
            server=self._server,
            client_class=redis.asyncio.Redis,
            wire=wire,
        )
        return await connect(URL, self.settings, ids=ids, client=redis.asyncio.Redis.from_pool(pool))
