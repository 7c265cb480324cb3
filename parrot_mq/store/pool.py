"""Connections as the store uses them: taken again without a probe, and packing commands in one go."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection


def pack(args: tuple[Any, ...]) -> bytes:
    """Return a command in the protocol of Redis."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class _Packing(AbstractConnection):
    """Packs a command's arguments in one pass.

    redis-py joins its growing buffer once for each argument, and a submit has hundreds: 24 us a request instead of 7.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as bytes for the socket; its name, and nothing else, may be two words."""
        return [pack((*str(args[0]).split(), *args[1:]))]

    @property
    def is_lost(self) -> bool:
        """Whether the other side has ended the connection, as far as the event loop has noticed."""
        reader, writer = self._reader, self._writer
        return reader is not None and writer is not None and (reader.at_eof() or writer.is_closing())


class _Tcp(_Packing, Connection):
    pass


class _Tls(_Packing, SSLConnection):
    pass


class _Unix(_Packing, UnixDomainSocketConnection):
    pass


_PACKING: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class UnprobedPool(ConnectionPool):
    """A pool that trusts its connections.

    redis-py looks for unread data on a connection before every command, with a time-out of zero: about 20 us and a turn
    of the event loop each time. It is not needed here: redis-py itself closes a connection whose answer was not read
    to its end (a cancelled command); one that the server has closed is known to the event loop, or fails in its next
    command, which is made again (``Partition.robust``; every script is idempotent).
    """

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_PACKING[connection_class], **options)

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, unless ``connection`` is connected and was not lost."""
        if isinstance(connection, _Packing) and connection.is_lost:
            await connection.disconnect(nowait=True)
        await connection.connect()
