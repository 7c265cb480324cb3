"""The one place where connections to Redis are made."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from parrot_mq import keys
from parrot_mq.errors import ConfigError, ParrotError, StoreUnavailable
from parrot_mq.settings import StoreSettings
from parrot_mq.store.address import masked
from parrot_mq.store.cluster import is_cluster, owner_url
from parrot_mq.store.ids import IdSource, SystemIds
from parrot_mq.store.partition import PASSING, Clients, Partition
from parrot_mq.store.pool import UnprobedPool

CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 128
SCHEMES = ("redis", "rediss", "unix")


def make_client(url: str) -> redis.asyncio.Redis:
    """Return a client for ``url`` with every time-out, protocol and pool size stated.

    redis-py 8 changed the defaults of all three. No socket time-out: redis-py 5 would wrap every command in
    ``asyncio.wait_for``, which costs time and on Python 3.11 can swallow a task's cancellation. Commands are bounded by
    ``Partition.robust``, blocking reads by their own argument. Reconnects are retried for about two seconds, so that a
    Redis that restarts is not seen as gone. Raises ``ConfigError`` for a URL that is none.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise ValueError("write redis://HOST:PORT, rediss://... or unix:///path")
        pool = UnprobedPool.from_url(
            url,
            decode_responses=True,
            protocol=2,
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=None,
            health_check_interval=0,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 6),
            retry_on_error=[RedisConnectionError],
            **({} if scheme == "unix" else {"socket_keepalive": True}),
        )
    except ValueError as error:
        raise ConfigError(f"{masked(url)!r} is not a Redis URL: {error}") from None
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_pool(pool)
    return client


class Store:
    """Redis as parrot_mq sees it: partitions; what is global lives with the first one.

    Close with ``aclose`` or use as an asynchronous context manager.
    """

    def __init__(
        self,
        url: str,
        partitions: tuple[Partition, ...],
        settings: StoreSettings,
        ids: IdSource,
    ) -> None:
        self.url = url
        self.partitions = partitions
        self.settings = settings
        self.ids = ids

    @property
    def client(self) -> redis.asyncio.Redis:
        """The client for the global keys (``keys.LEADER``, ``keys.ENGINES``)."""
        return self.partitions[0].redis

    def partition(self, number: int) -> Partition:
        """Return partition ``number``; ``ConfigError`` if this deployment has no such partition."""
        if not 0 <= number < len(self.partitions):
            raise ConfigError(
                f"the id belongs to partition {number}, but this client was configured for {len(self.partitions)}; "
                "set PARROT_MQ_PARTITIONS to the deployment's value"
            )
        return self.partitions[number]

    def of(self, object_id: str, kind: str = "") -> Partition:
        """Return the partition that ``object_id`` carries; ``BadType`` if it is no id (of ``kind``)."""
        return self.partition(keys.partition_of(object_id, kind))

    async def aclose(self) -> None:
        """Close every connection."""
        for partition in self.partitions:
            await partition.clients.aclose()

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


async def connect(
    url: str,
    settings: StoreSettings | None = None,
    *,
    ids: IdSource | None = None,
    client: redis.asyncio.Redis | None = None,
    timeout_s: float = 10.0,
) -> Store:
    """Connect to the Redis at ``url`` (a single server, or any node of a cluster) and return the store.

    ``client`` replaces the connections (a fakeredis client in unit tests). Raises ``StoreUnavailable`` if nothing
    answers within ``timeout_s``, ``ConfigError`` for a URL that is none, or that the server refuses.
    """
    settings = settings or StoreSettings.from_env()
    fake = client is not None
    clustered = False
    client = client or make_client(url)
    try:
        async with asyncio.timeout(timeout_s):
            await client.ping()
            clustered = not fake and await is_cluster(client)
    except (TimeoutError, RedisError, OSError, TypeError) as error:
        await client.aclose()
        raise _refusal(url, error) from None
    if clustered and urlsplit(url).scheme == "unix":
        await client.aclose()
        raise ConfigError(
            f"{masked(url)} is a node of a Redis Cluster; give its TCP address, for the others have no other"
        )
    partitions: list[Partition] = []
    for number in range(settings.partitions):
        partition_keys = keys.Keys(number)
        if clustered:
            home = await owner_url(client, url, partition_keys.epoch)
            clients = Clients(make_client(home), make_client(home), url=url, make=make_client)
        elif fake or number == 0:
            clients = Clients(client, client if fake else make_client(url))
        else:
            clients = partitions[0].clients
        partitions.append(Partition(partition_keys, clients, settings))
    if clustered:
        await client.aclose()
    return Store(url, tuple(partitions), settings, ids or SystemIds())


def _refusal(url: str, error: Exception) -> ParrotError:
    """Return what a user is told whose first command failed with ``error``."""
    if isinstance(error, AuthenticationError):
        return ConfigError(f"Redis at {masked(url)} refuses the login ({error}); write redis://USER:PASSWORD@HOST:PORT")
    if not isinstance(error, PASSING):  # such as a database number, or an option that redis-py lacks
        return ConfigError(f"Redis cannot be used as {masked(url)}: {error}")
    return StoreUnavailable(
        f"no Redis answers at {masked(url)} ({error or 'timed out'}); start one with `redis-server` or "
        "`parrot-mq up`, or give another address with --redis-url or PARROT_MQ_REDIS_URL"
    )
