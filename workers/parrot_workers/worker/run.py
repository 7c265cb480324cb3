"""A request that this engine has claimed (or is just claiming), until its end is written to Redis."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

from parrot_mq.messages import RequestSpec
from parrot_mq.store.emission import Emission
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Claim
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.worker.plan import Plan


def sequence_id(request: str, fence: str) -> str:
    """Return the id of an attempt inside the engine: one request may come back under a new fence."""
    return f"{request}/{fence}"


@dataclasses.dataclass(slots=True, eq=False)
class Run:
    """One attempt of one request; owned by the worker's event loop.

    Output is kept from the first token on, because somebody may ask for a stream late. Times are in seconds of the
    monotonic clock.
    """

    claim: Claim
    spec: RequestSpec
    plan: Plan
    store: EngineStore
    received_s: float
    started_s: float
    answered: asyncio.Future[None] | None = None
    """Ends with the answer to its claim, if the run has begun before; ``claim`` is then what was offered."""
    streamed: bool = False
    stream_due_s: float = 0.0
    """When its next piece may be written, in seconds of the event loop's clock."""
    in_engine: bool = True
    """Whether it occupies one of the engine's slots, or is about to."""
    dropped: bool = False
    """It is not ours any more: nothing of it may be written."""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    text: list[str] = dataclasses.field(default_factory=list)
    num_replayed: int = 0
    """Published tokens that the engine has said again."""
    num_emitted: int = 0
    """Tokens of ``token_ids`` that were streamed."""

    @property
    def id(self) -> str:
        """Its id inside the engine."""
        return sequence_id(self.claim.request, self.claim.fence)

    @property
    def pair(self) -> tuple[str, str]:
        """Request and fence, as the store's scripts want them."""
        return self.claim.request, self.claim.fence

    @property
    def is_claimed(self) -> bool:
        """Whether it is ours for certain; before, only its result may be written."""
        return self.answered is None or self.answered.done()

    async def claimed(self) -> None:
        """Wait for the answer to its claim. It is ``dropped`` then if that was no."""
        if self.answered is not None:
            await self.answered

    def add(self, output: SequenceOutput) -> None:
        """Keep what a step produced.

        An engine begins with the tokens that it was forced to take, in one output of their own, with the text that
        was certain after them: readers have both already.
        """
        again = min(len(output.token_ids), len(self.claim.published_ids) - self.num_replayed)
        self.num_replayed += again
        self.token_ids.extend(output.token_ids[again:])
        if output.text and not again:
            self.text.append(output.text)

    def take_piece(self) -> Emission | None:
        """Return what has not been streamed yet and count it as streamed; None if there is nothing."""
        ids, text = tuple(self.token_ids[self.num_emitted :]), "".join(self.text)
        if not ids and not text:
            return None
        offset = len(self.claim.published_ids) + self.num_emitted
        self.num_emitted += len(ids)
        self.text.clear()
        return Emission(*self.pair, offset, ids, text)


class Leases:
    """The leases this engine holds, by partition. The event loop changes it, the keeper thread reads it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], int] = {}

    def hold(self, partition: int, pair: tuple[str, str]) -> None:
        """Have the lease of a (request, fence) pair renewed from now on."""
        with self._lock:
            self._held[pair] = partition

    def drop(self, pair: tuple[str, str]) -> None:
        """Let a lease run out; unknown ones are ignored."""
        with self._lock:
            self._held.pop(pair, None)

    def of(self, partition: int) -> list[tuple[str, str]]:
        """Return the pairs held in a partition."""
        with self._lock:
            return [pair for pair, number in self._held.items() if number == partition]
