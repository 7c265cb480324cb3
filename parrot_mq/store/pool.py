"""Connections that are used again without being probed first."""

from __future__ import annotations

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection


class UnprobedPool(ConnectionPool):
    """A pool that trusts its connections.

    redis-py looks for unread data on a connection before every command, with a time-out of zero: about 20 us and a turn
    of the event loop each time. It is not needed here: redis-py itself closes a connection whose answer was not read
    to its end (a cancelled command), and one that the server closed fails in its next command, which is made again
    (``Partition.robust``; every script is idempotent).
    """

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, unless ``connection`` is connected."""
        await connection.connect()
