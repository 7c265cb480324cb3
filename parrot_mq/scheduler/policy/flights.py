"""Single-flight: of equal deterministic requests one is placed, and the others go with it.

The engine runs them as one sequence, so that they cost nothing there. Which are equal is guessed here from digests; the
engine compares the prompts themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import orjson

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.prefix import text_digest

DIGEST_BYTES = 16
MAX_MEMBERS = 256
"""Requests of one flight; what comes then is placed by itself, and leads the next."""


def call_digest(spec: dict[str, Any]) -> bytes:
    """Digest what is fixed about a request's output when it is submitted: template, model, sampling.

    Empty for what may come out otherwise the next time: sampled without a seed. How the output is transformed is not
    part of it, because each request applies its own.
    """
    sampling = spec.get("sampling", {})
    if sampling.get("temperature", 0) != 0 and sampling.get("seed") is None:
        return b""
    fixed = [spec["function"], spec["prompt_end"], spec.get("model", ""), bool(spec.get("share_prefixes")), sampling]
    return hashlib.blake2b(orjson.dumps(fixed, option=orjson.OPT_SORT_KEYS), digest_size=DIGEST_BYTES).digest()


def flight_digest(node: RequestNode) -> str | None:
    """Return what all requests of the tenant that are equal to ``node`` have in common, 32 hex digits.

    None for a request that is not deterministic, or whose inputs are not known here. Keyed by the tenant: requests of
    two tenants are never equal, whatever prefixes they share.
    """
    if not node.call_digest:
        return None
    inputs = {variable.id: variable for variable in node.inputs}
    digest = hashlib.blake2b(node.call_digest, digest_size=DIGEST_BYTES, key=_key_of(node.tenant))
    for name, binding in sorted(node.bindings.items()):
        if (text := binding.get("text")) is not None:
            kind, value = "v", text_digest(text.encode(errors="surrogatepass"))
        else:
            variable = inputs.get(binding["variable"])
            if variable is None or not variable.digest:
                return None
            kind, value = ("r" if variable.id in node.raw_inputs else "v"), variable.digest
        digest.update(orjson.dumps([name, kind, value]))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _key_of(tenant: str) -> bytes:
    return hashlib.sha256(b"parrot_mq flight " + tenant.encode()).digest()


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """Equal requests that were dispatched to one engine; the first of them is charged to its load."""

    engine: str
    members: dict[str, RequestNode] = dataclasses.field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether one more may join."""
        return len(self.members) < MAX_MEMBERS


class _Equals:
    """Equal requests that are ready, the most urgent first."""

    def __init__(self) -> None:
        self.standing: RequestNode | None = None
        """Who stands in the ready queue for all; None while they are to board."""
        self._tickets: dict[str, int] = {}
        self._heap: list[tuple[float, int, RequestNode]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, node: RequestNode) -> bool:
        return node.id in self._tickets

    def add(self, node: RequestNode) -> None:
        """Add a request, or give it another place."""
        ticket = self._tickets[node.id] = next(self._count)
        heapq.heappush(self._heap, (node.key_ms, ticket, node))

    def remove(self, node: RequestNode) -> None:
        """Take a request out."""
        del self._tickets[node.id]
        if self.standing is node:
            self.standing = None

    def first(self) -> RequestNode:
        """Return the most urgent one; there must be one."""
        while self._tickets.get(self._heap[0][2].id) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][2]


class Flights:
    """Equal requests that are ready, and those that are on engines. Of unfinished requests only; O(log n) for each.

    Of the ready ones the most urgent stands in the ready queue for all. Where an equal one is on an engine already,
    they need no decision: they *board*.
    """

    def __init__(self) -> None:
        self._ready: dict[str, _Equals] = {}
        self._boarding: dict[str, None] = {}
        self._newest: dict[str, Flight] = {}
        self._of: dict[str, Flight] = {}
        """By request; all others are by digest."""

    def __contains__(self, node: RequestNode) -> bool:
        """Whether a ready request waits here, be it in the queue itself or behind another."""
        equals = self._ready.get(node.flight or "")
        return equals is not None and node in equals

    def stands_for(self, node: RequestNode) -> RequestNode | None:
        """Return who stands in the queue for a ready request that waits here; None if it is to board."""
        equals = self._ready.get(node.flight or "")
        return equals.standing if equals is not None and node in equals else None

    @property
    def is_boarding(self) -> bool:
        """Whether somebody can go without a decision."""
        return bool(self._boarding)

    def wait(self, node: RequestNode) -> tuple[RequestNode | None, RequestNode | None]:
        """A request is ready, or its place in the queue has changed; return who enters the queue, and who leaves it."""
        digest = node.flight
        if not digest:
            return node, None
        equals = self._ready.setdefault(digest, _Equals())
        equals.add(node)
        flight = self._newest.get(digest)
        if digest in self._boarding or (equals.standing is None and flight is not None and flight.has_room):
            self._boarding[digest] = None
            return None, None
        before, equals.standing = equals.standing, equals.first()
        if equals.standing is before:
            return (node, None) if before is node else (None, None)
        return equals.standing, before

    def unwait(self, node: RequestNode) -> RequestNode | None:
        """A request is not ready any more; return who enters the queue in its place."""
        if node not in self:
            return None
        digest = node.flight or ""
        equals = self._ready[digest]
        equals.remove(node)
        if not equals:
            del self._ready[digest]
            self._boarding.pop(digest, None)
        elif equals.standing is None and digest not in self._boarding:
            equals.standing = equals.first()
            return equals.standing
        return None

    def board(
        self, limit: int, is_open: Callable[[str], bool]
    ) -> tuple[list[tuple[RequestNode, str]], list[RequestNode]]:
        """Take out up to ``limit`` requests of which an equal one is on an engine; return each with its engine.

        Also returns who enters the queue because there is no room any more, or the engine is not open to anybody.
        """
        boarded: list[tuple[RequestNode, str]] = []
        queued: list[RequestNode] = []
        for digest in list(self._boarding):
            equals, flight = self._ready[digest], self._newest.get(digest)
            while equals and flight is not None and flight.has_room and is_open(flight.engine) and len(boarded) < limit:
                node = equals.first()
                equals.remove(node)
                self._join(node, flight)
                boarded.append((node, flight.engine))
            if len(boarded) >= limit:
                break
            del self._boarding[digest]
            if equals:
                equals.standing = equals.first()
                queued.append(equals.standing)
            else:
                del self._ready[digest]
        return boarded, queued

    def depart(self, node: RequestNode, engine_id: str) -> bool:
        """``node`` was dispatched; return whether it is to be charged: no equal one is charged there for it.

        Those that are ready and equal are to board from now on.
        """
        digest = node.flight
        if not digest:
            return True
        self.leave(node)
        equals = self._ready.get(digest)
        if equals is not None and node in equals:
            equals.remove(node)
            if not equals:
                del self._ready[digest]
                self._boarding.pop(digest, None)
        flight = self._newest.get(digest)
        is_new = flight is None or flight.engine != engine_id or not flight.has_room
        if flight is None or is_new:
            flight = self._newest[digest] = Flight(engine_id)
        self._join(node, flight)
        if equals and equals.standing is None:
            self._boarding[digest] = None
        return is_new

    def leave(self, node: RequestNode) -> RequestNode | None:
        """A request is on no engine any more; return who is to be charged from now on, if it was this one."""
        flight = self._of.pop(node.id, None)
        if flight is None:
            return None
        was_first = next(iter(flight.members)) == node.id
        del flight.members[node.id]
        if flight.members:
            return next(iter(flight.members.values())) if was_first else None
        if self._newest.get(node.flight or "") is flight:
            del self._newest[node.flight or ""]
        return None

    def uncharged(self, engine_id: str) -> list[str]:
        """Return the requests on an engine that are not charged to it."""
        flights = {id(flight): flight for flight in self._of.values() if flight.engine == engine_id}
        return [request for flight in flights.values() for request in list(flight.members)[1:]]

    def _join(self, node: RequestNode, flight: Flight) -> None:
        flight.members[node.id] = node
        self._of[node.id] = flight
