"""A request that this engine has claimed (or is just claiming), until its end is written to Redis."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

from parrot_mq.messages import ObjectiveKind, RequestSpec
from parrot_mq.store.emission import Emission
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Claim
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.transcript import Transcript


def sequence_id(request: str, fence: str) -> str:
    """Return the id of an attempt inside the engine: one request may come back under a new fence."""
    return f"{request}/{fence}"


@dataclasses.dataclass(slots=True, eq=False)
class Run:
    """One attempt of one request; owned by the worker's event loop.

    Its output is kept from the first token on, because somebody may ask for a stream late; runs that share a sequence
    share its transcript, and each has its own place in it. Times are in seconds of the monotonic clock.
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
    """Whether it waits for what the engine says, alone or with others."""
    dropped: bool = False
    """It is not ours any more: nothing of it may be written."""
    outcome: SequenceOutput | None = None
    """The engine's last word."""
    shared: bool = False
    """It ended with an output whose tokens were computed for another run."""
    objective: ObjectiveKind = dataclasses.field(init=False)
    transcript: Transcript = dataclasses.field(default_factory=Transcript)
    num_streamed_tokens: int = 0
    num_streamed_steps: int = 0
    """How far in the transcript its stream has come."""

    def __post_init__(self) -> None:
        self.objective = self.plan.objective

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

    def take_piece(self) -> Emission | None:
        """Return what has not been streamed yet and count it as streamed; None if there is nothing.

        Tokens that an earlier attempt published, and the text that was certain after them, are with the readers.
        """
        num_published = len(self.claim.published_ids)
        offset = max(self.num_streamed_tokens, num_published)
        first = max(self.num_streamed_steps, self.transcript.steps_to(num_published))
        ids, text = tuple(self.transcript.token_ids[offset:]), "".join(self.transcript.pieces[first:])
        if not ids and not text:
            return None
        self.num_streamed_tokens, self.num_streamed_steps = offset + len(ids), len(self.transcript.pieces)
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
