"""Which node of a Redis Cluster holds a key. Each partition then talks to that node with a plain client.

(redis-py's cluster client has no pub/sub at 5.3, and no version of it pipelines EVALSHA.)
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import MovedError, ResponseError

from parrot_mq.errors import StoreUnavailable


async def is_cluster(client: redis.asyncio.Redis) -> bool:
    """Whether the server that ``client`` talks to is a node of a cluster."""
    try:
        info: dict[str, Any] = await client.info("cluster")
    except ResponseError:
        return False
    return bool(info.get("cluster_enabled"))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def owner_url(client: redis.asyncio.Redis, url: str, key: str) -> str:
    """Return ``url`` with the host and port of the master that holds ``key``."""
    slot = key_slot(key.encode())
    # As two words: redis-py parses the reply to "CLUSTER SLOTS" only, and differently from version to version.
    slots = await client.execute_command("CLUSTER", "SLOTS")
    for first, last, master, *_ in slots:
        if int(first) <= slot <= int(last):
            return at_address(url, _text(master[0]), int(master[1]))
    raise StoreUnavailable(f"no master of the cluster at {url} holds slot {slot}; run `redis-cli --cluster check`")


def moved_to(error: ResponseError) -> tuple[str, int] | None:
    """Return the host and port that a ``MOVED`` answer names (no host: the one that answered), None for another answer.

    A plain client of redis-py makes a ``MovedError`` of it from version 6 on; before, only the text says so.
    """
    if isinstance(error, MovedError):
        return error.host, error.port
    match str(error).split():
        case ["MOVED", _, address]:
            host, _, port = address.rpartition(":")
            return host, int(port)
    return None


def at_address(url: str, host: str, port: int) -> str:
    """Return ``url`` with another host and port, credentials and options kept."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    host = host or parts.hostname or "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{host}:{port}"))
