"""Every Redis key and channel, made here and nowhere else.

A partition's keys share the hash tag ``{p<N>}`` and so one cluster slot. Ids carry their partition: ``0-v-k3f...``.
What is global lives with partition 0, so that on a cluster it has a home that is known.
"""

from __future__ import annotations

import binascii
import dataclasses
from collections.abc import Iterable

from parrot_mq.errors import BadType

LEADER = "pmq:{p0}:leader"
"""String with a time to live: the scheduler that leads, as ``<id>``."""
ENGINES = "pmq:{p0}:engines"
"""Sorted set: engine ids by when they were last seen (epoch milliseconds)."""
GROUP = "engine"
"""The consumer group on every engine stream, made at id 0."""
KINDS = {"s": "session", "v": "variable", "r": "request", "c": "call"}


def make_id(partition: int, kind: str, token: str) -> str:
    """Return the id of a new object: ``<partition>-<kind letter>-<token>``."""
    return f"{partition}-{kind}-{token}"


def session_partition(token: str, partitions: int) -> int:
    """Return the partition of a session by the CRC-16 (XMODEM, as Redis Cluster uses) of its random part."""
    return binascii.crc_hqx(token.encode(), 0) % partitions


def partition_of(object_id: str, kind: str = "") -> int:
    """Return the partition that ``object_id`` carries; ``BadType`` if it is no id (of ``kind``, where given)."""
    parts = object_id.split("-", 2) if isinstance(object_id, str) else ()
    if len(parts) != 3 or not parts[0].isdigit() or parts[1] not in KINDS or not parts[2]:
        raise BadType(f"{object_id!r} is not an id of parrot_mq (like '0-v-3kf9a')", str(object_id))
    if kind and parts[1] != kind:
        raise BadType(f"{object_id!r} is the id of a {KINDS[parts[1]]}, not of a {KINDS[kind]}", object_id)
    return int(parts[0])


def by_partition(ids: Iterable[str]) -> list[list[str]]:
    """Return ids in lists, one for each partition that they carry."""
    parts: dict[int, list[str]] = {}
    for object_id in ids:
        parts.setdefault(partition_of(object_id), []).append(object_id)
    return list(parts.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition."""

    partition: int

    @property
    def prefix(self) -> str:
        """What every key of the partition begins with."""
        return f"pmq:{{p{self.partition}}}:"

    def session(self, session_id: str) -> str:
        """Hash of a session."""
        return f"{self.prefix}sess:{session_id}"

    def function(self, tenant: str, digest: str) -> str:
        """Hash of a template of a tenant."""
        return f"{self.prefix}fn:{tenant}:{digest}"

    def variable(self, variable_id: str) -> str:
        """Hash of a variable."""
        return f"{self.prefix}var:{variable_id}"

    def value(self, variable_id: str, fence: str) -> str:
        """String with a large value, staged by the owner of ``fence``."""
        return f"{self.prefix}val:{variable_id}:{fence}"

    def tokens(self, variable_id: str) -> str:
        """Stream of a variable's output pieces."""
        return f"{self.prefix}var:{variable_id}:tokens"

    def request(self, request_id: str) -> str:
        """Hash of a request."""
        return f"{self.prefix}req:{request_id}"

    def engine(self, engine_id: str) -> str:
        """Hash with an engine's heartbeat; expires."""
        return f"{self.prefix}eng:{engine_id}"

    def engine_queue(self, engine_id: str) -> str:
        """Stream of assignments for an engine."""
        return f"{self.prefix}eng:{engine_id}:q"

    def engine_control(self, engine_id: str) -> str:
        """Stream of control messages for an engine."""
        return f"{self.prefix}eng:{engine_id}:c"

    def why(self, request_id: str) -> str:
        """String, short-lived: a question to the scheduler about a request (empty), then its answer."""
        return f"{self.prefix}why:{request_id}"

    @property
    def live(self) -> str:
        """Sorted set of unfinished requests, by submission order."""
        return f"{self.prefix}live"

    @property
    def sessions(self) -> str:
        """Sorted set of sessions by when they expire (epoch milliseconds)."""
        return f"{self.prefix}sessions"

    @property
    def intake(self) -> str:
        """Stream of hints for the scheduler."""
        return f"{self.prefix}intake"

    @property
    def leases(self) -> str:
        """Sorted set of running requests by the deadline of their lease (epoch milliseconds)."""
        return f"{self.prefix}leases"

    @property
    def delayed(self) -> str:
        """Sorted set of requests in back-off by when they become ready (epoch milliseconds)."""
        return f"{self.prefix}delayed"

    @property
    def work(self) -> str:
        """Stream with the rest of large fan-outs."""
        return f"{self.prefix}work"

    @property
    def outbox(self) -> str:
        """Stream of values for importers in other partitions."""
        return f"{self.prefix}outbox"

    @property
    def dead(self) -> str:
        """Stream of dead letters."""
        return f"{self.prefix}dead"

    @property
    def events(self) -> str:
        """Capped stream of state changes."""
        return f"{self.prefix}events"

    @property
    def epoch(self) -> str:
        """String: the newest leader's epoch."""
        return f"{self.prefix}epoch"

    def session_channel(self, session_id: str) -> str:
        """Pub/sub channel of a session; the message is the id of a variable."""
        return f"{self.prefix}ch:{session_id}"

    def variable_channel(self, variable_id: str) -> str:
        """Pub/sub channel of a variable, for waiters outside its session."""
        return f"{self.prefix}ch:v:{variable_id}"
