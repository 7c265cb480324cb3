"""One run of the demo: both applications through the service, then driven by a client, and what came out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import parrot_mq as P
from parrot_mq.demo.app import Graph, chain, groups_of, map_reduce, note_chunk
from parrot_mq.demo.client_side import ClientSide, Network
from parrot_mq.demo.meetings import chunks_of, make_meeting
from parrot_mq.demo.monitor import Monitor, StageProgress
from parrot_mq.groups import only

TIMEOUT_S = 3600.0
"""A large model on a slow machine may take its time for each application, but not for ever."""
BUILDERS: dict[str, Callable[[P.Session, Sequence[str]], Graph]] = {"map_reduce": map_reduce, "chain": chain}
TITLES = {"map_reduce": "map-reduce", "chain": "chain"}


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """What is summarised: a transcript in chunks, and the notes that are right where they are known."""

    title: str
    chunks: tuple[str, ...]
    expected: str | None

    @classmethod
    def of_seed(cls, seed: int) -> Document:
        """The meeting of this seed, which training never used."""
        meeting = make_meeting(seed)
        return cls(f"the meeting of seed {seed}", meeting.chunks, meeting.expected_notes)

    @classmethod
    def of_file(cls, path: Path) -> Document:
        """Any text. Raises ``ConfigError`` for a file that cannot be read or holds no text."""
        try:
            chunks = tuple(chunks_of(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise P.ConfigError(f"--document {path} cannot be read: {error}") from None
        if not chunks:
            raise P.ConfigError(f"--document {path} holds no text")
        return cls(str(path), chunks, None)


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """One application, once: its final notes and how long they took from the first call, in seconds."""

    notes: str
    elapsed_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A whole run; ``service`` and ``client`` by application (map_reduce, chain).

    ``num_tokens`` is the length of the transcript in tokens of the model.
    """

    expected: str | None
    service: dict[str, Timed]
    client: dict[str, Timed]
    num_tokens: int

    @property
    def correct(self) -> bool | None:
        """Whether every application's notes are exactly right; None where nobody knows what is."""
        if self.expected is None:
            return None
        return all(timed.notes == self.expected for timed in self.service.values())

    @property
    def pipeline_s(self) -> float:
        """Seconds that the applications took through the service, together."""
        return sum(timed.elapsed_s for timed in self.service.values())

    @property
    def client_side_s(self) -> float:
        """Seconds that the same applications took driven by a client."""
        return sum(timed.elapsed_s for timed in self.client.values())

    @property
    def ratio(self) -> float:
        """How many times longer the client's way took."""
        return self.client_side_s / self.pipeline_s

    def to_json(self) -> dict[str, Any]:
        """Return the run as the demo prints it with ``--json``."""
        return {
            "summaries": {name: timed.notes for name, timed in self.service.items()},
            "expected": None if self.expected is None else dict.fromkeys(self.service, self.expected),
            "correct": self.correct,
            "pipeline_s": round(self.pipeline_s, 3),
            "client_side_s": round(self.client_side_s, 3),
            "ratio": round(self.ratio, 3),
            "tokens": self.num_tokens,
        }


class Audience(Protocol):
    """Who watches a run."""

    def begin(self, title: str, stages: Sequence[StageProgress]) -> None:
        """An application starts."""

    def progress(self, stages: Sequence[StageProgress]) -> None:
        """Something has happened, or half a second has passed."""

    def end(self, timed: Timed) -> None:
        """The application has its result."""


class Silence:
    """Nobody watches."""

    def begin(self, title: str, stages: Sequence[StageProgress]) -> None:
        """Ignore it."""

    def progress(self, stages: Sequence[StageProgress]) -> None:
        """Ignore it."""

    def end(self, timed: Timed) -> None:
        """Ignore it."""


async def run_demo(
    url: str, document: Document, *, model: str = "", seed: int = 0, audience: Audience | None = None
) -> Result:
    """Run both applications on the service at ``url`` and then from a client; ``seed`` is the network's.

    Each side is a tenant of its own, so that neither reads what the other left in the engines' caches. Raises the
    ``StepError`` of a call that failed.
    """
    audience = audience or Silence()
    async with P.connect(url, model=model) as client:
        template_tokens = await _warm_up(client)
        network = Network(seed)
        service: dict[str, Timed] = {}
        by_client: dict[str, Timed] = {}
        num_tokens = 0
        async with _session(client, "demo-service") as session:
            for name in BUILDERS:
                run = _Run(client, session, document, audience)
                service[name] = await run.through_service(name, network)
                if name == "map_reduce":
                    maps = run.monitor.stages["map"]
                    num_tokens = maps.num_prompt_tokens - template_tokens * maps.total
        async with _session(client, "demo-client") as session:
            for name in BUILDERS:
                by_client[name] = await _Run(client, session, document, audience).from_client(name, network)
    return Result(document.expected, service, by_client, num_tokens)


@contextlib.asynccontextmanager
async def _session(client: P.Client, tenant: str) -> AsyncIterator[P.Session]:
    """A session that is deleted at the end, whatever happened in it."""
    async with client.session(tenant=tenant) as session:
        try:
            yield session
        finally:
            await session.delete()


async def _warm_up(client: P.Client) -> int:
    """Have the engine run its first request; return how many tokens of a map prompt are not the chunk's."""
    async with _session(client, "demo-warm-up") as session:
        monitor = Monitor(client.store, [("map", 1)], lambda stages: None)
        answer = note_chunk("", session=session)
        monitor.watch("map", answer)
        await answer.get(timeout_s=TIMEOUT_S)
        await monitor.look()
        return monitor.stages["map"].num_prompt_tokens


class _Run:
    """One application, one way."""

    def __init__(self, client: P.Client, session: P.Session, document: Document, audience: Audience) -> None:
        self._client = client
        self._session = session
        self._document = document
        self._audience = audience
        self.monitor: Monitor

    async def through_service(self, name: str, network: Network) -> Timed:
        """Submit the whole graph at once and wait for its end: one exchange over the network."""

        async def work() -> str:
            half_s = network.half_trip_s()
            await asyncio.sleep(half_s)
            graph = BUILDERS[name](self._session, self._document.chunks)
            for stage in graph.stages:
                for variable in stage.variables:
                    self.monitor.watch(stage.name, variable)
            notes = await graph.result.get(timeout_s=TIMEOUT_S)
            await asyncio.sleep(half_s)
            return notes

        return await self._timed(f"{TITLES[name]} through the service", name, work)

    async def from_client(self, name: str, network: Network) -> Timed:
        """Drive it request by request."""

        async def work() -> str:
            side = ClientSide(self._session, network, self.monitor.watch)
            return await (side.map_reduce if name == "map_reduce" else side.chain)(self._document.chunks)

        return await self._timed(f"{TITLES[name]} driven by a client", name, work)

    async def _timed(self, title: str, name: str, work: Callable[[], Awaitable[str]]) -> Timed:
        self.monitor = Monitor(self._client.store, stages_of(name, len(self._document.chunks)), self._audience.progress)
        self._audience.begin(title, list(self.monitor.stages.values()))
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self.monitor.run())
                began_s = time.monotonic()
                notes = await work()
                timed = Timed(notes, time.monotonic() - began_s)
                watching.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        await self.monitor.look()
        self._audience.end(timed)
        return timed


def stages_of(name: str, num_chunks: int) -> list[tuple[str, int]]:
    """Return the stages of an application over so many chunks, each with its number of calls."""
    if name == "chain":
        return [("chain", num_chunks)]
    stages = [("map", num_chunks)]
    while num_chunks > 1:
        groups = groups_of(range(num_chunks))
        stages.append((f"reduce {len(stages)}", sum(len(group) > 1 for group in groups)))
        num_chunks = len(groups)
    return stages
