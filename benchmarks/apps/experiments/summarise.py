"""Summarising a long document: as a chain of refinements, and by map-reduce (Parrot, OSDI'24, section 8.2).

The document's lengths are those of the reference's ten articles, in chunks of 1024 tokens; they follow from the seconds
per output token that it published for each (the shortest has just over 20k tokens).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.apps.application import Application, Calls, Function, Handle
from benchmarks.apps.bench import Bench, Outcome, Point, mean_seconds, timed
from benchmarks.apps.drivers import Ran

DOCUMENT_CHUNKS = (33, 21, 23, 20, 27, 26, 45, 44, 21, 28)
CHUNK = 1024
QUICK_DOCUMENT = 4
"""The one of which the length is nearest to the mean."""


def chunks_of(bench: Bench, document: int, chunk: int) -> list[str]:
    """Return the texts of a document's chunks, the last one shorter where the length is no multiple."""
    total = bench.scale.length(DOCUMENT_CHUNKS[document % len(DOCUMENT_CHUNKS)] * CHUNK) // bench.scale.work
    size = bench.scale.length(chunk)
    lengths = [size] * (total // size) + ([total % size] if total % size else [])
    return [bench.texts.text(length, "document", document, number) for number, length in enumerate(lengths)]


def chain(bench: Bench, chunks: Sequence[str], num_output: int, *, chunk_first: bool) -> Application:
    """Refine a summary chunk by chunk.

    With ``chunk_first`` the chunk comes before the summary so far, so that it can be read ahead; else after it.
    """
    first = Function("first", (bench.text(20, "first"), bench.text(6, "concise")), bench.scale.length(num_output))
    head, middle, end = bench.text(36, "your job"), bench.text(28, "refine"), bench.text(31, "given")
    refine = Function("refine", (head, middle, end), bench.scale.length(num_output))

    def application(calls: Calls) -> Sequence[Handle]:
        summary = calls.call(first, chunks[0])
        for chunk in chunks[1:]:
            inputs = (chunk, summary) if chunk_first else (summary, chunk)
            summary = calls.call(refine, *inputs)
        return [summary]

    return application


def map_reduce(bench: Bench, chunks: Sequence[str], num_output: int) -> Application:
    """Summarise every chunk, then the summaries."""
    length = bench.scale.length(num_output)
    note = Function("map", (bench.text(20, "map"), bench.text(6, "concise")), length)
    breaks = [bench.text(1, "break")] * (len(chunks) - 1)
    merge = Function("reduce", (bench.text(8, "reduce"), *breaks, bench.text(22, "distill")), length)

    def application(calls: Calls) -> Sequence[Handle]:
        return [calls.call(merge, *[calls.call(note, chunk) for chunk in chunks])]

    return application


def sweep() -> tuple[Point, ...]:
    """Return the reference's settings: output 25 to 100 with chunks of 1024, then chunks of 512 to 2048."""
    outputs = [Point(f"out={out}", {"chunk": CHUNK, "out": out}, quick=out == 50) for out in (25, 50, 75, 100)]
    return (*outputs, *(Point(f"chunk={chunk}", {"chunk": chunk, "out": 50}) for chunk in (512, 1536, 2048)))


@dataclasses.dataclass(frozen=True)
class Chain:
    """One document at a time, on one engine."""

    name: str = "chain"
    profile: str = "a100-13b"
    num_engines: int = 1
    context_tokens: int = 1200
    baselines: Sequence[str] = ("latency", "latency+cache", "throughput", "throughput+cache")
    features: Sequence[str] = ("eager_prefill", "streamed_prefill", "deduce_objectives", "prefix_affinity")
    quick_values: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"documents": [QUICK_DOCUMENT]})
    points: Sequence[Point] = (
        *sweep(),
        *(Point(f"out={out}, summary first", {"chunk": CHUNK, "out": out, "chunk_first": False}) for out in (25, 50)),
    )

    async def run(
        self, bench: Bench, *, chunk: int, out: int, chunk_first: bool = True, documents: Sequence[int] | None = None
    ) -> Outcome:
        runs = []
        for document in _documents(bench, documents):
            application = chain(bench, chunks_of(bench, document, chunk), out, chunk_first=chunk_first)
            runs.append(await bench.driver.run(application))
        return Outcome(mean_seconds(runs))


def _documents(bench: Bench, chosen: Sequence[int] | None) -> Sequence[int]:
    return range(bench.scale.count(len(DOCUMENT_CHUNKS))) if chosen is None else chosen


@dataclasses.dataclass(frozen=True)
class ChainBackground:
    """A chain while single requests of other users arrive at random times."""

    name: str = "chain-background"
    profile: str = "a100-13b"
    num_engines: int = 1
    context_tokens: int = 1200
    baselines: Sequence[str] = ("latency", "latency+cache", "throughput", "throughput+cache")
    features: Sequence[str] = ("eager_prefill", "deduce_objectives", "retain_prefixes")
    quick_values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    points: Sequence[Point] = tuple(
        Point(f"rate={rate:g}", {"rate": rate}, quick=rate == 2) for rate in (0.0, 1.0, 2.0, 3.0, 3.5)
    )

    async def run(self, bench: Bench, *, rate: float, documents: Sequence[int] = (1,)) -> Outcome:
        rate *= bench.scale.rate
        users: list[asyncio.Task[Ran]] = []
        runs: list[Ran] = []
        for document in documents:
            source = bench.random("background", document)
            chain_run = asyncio.ensure_future(
                bench.driver.run(chain(bench, chunks_of(bench, document, CHUNK), 50, chunk_first=True))
            )
            number = 0
            while rate and not chain_run.done():
                text = bench.text(512, "background", document, number)
                users.append(asyncio.ensure_future(bench.driver.run(_single(bench, text))))
                number += 1
                await asyncio.wait([chain_run], timeout=source.expovariate(rate))
            runs.append(await chain_run)
        others = [await user for user in users]
        extras = {"background_s": round(mean_seconds(others), 3), "num_background": len(others)} if others else {}
        return Outcome(mean_seconds(runs), extras)


def _single(bench: Bench, text: str) -> Application:
    answer = Function("background", ("", ""), bench.scale.length(50))
    return lambda calls: [calls.call(answer, text)]


@dataclasses.dataclass(frozen=True)
class ConcurrentChains:
    """Many documents at once on one engine."""

    name: str = "concurrent-chains"
    profile: str = "a100-13b"
    num_engines: int = 1
    context_tokens: int = 2200
    baselines: Sequence[str] = ("latency", "latency+cache", "throughput", "throughput+cache")
    features: Sequence[str] = ("eager_prefill", "streamed_prefill", "deduce_objectives", "retain_prefixes")
    quick_values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    points: Sequence[Point] = tuple(
        Point(f"chains={count}", {"count": count}, quick=count == 10) for count in (10, 15, 20, 25)
    )

    async def run(self, bench: Bench, *, count: int) -> Outcome:
        applications = [
            chain(bench, chunks_of(bench, document, 2048), 50, chunk_first=True)
            for document in range(bench.scale.count(count))
        ]
        runs = await timed([bench.driver.run(application) for application in applications])
        return Outcome(mean_seconds(runs), {"applications_s": [round(run.elapsed_s, 3) for run in runs]})


@dataclasses.dataclass(frozen=True)
class MapReduce:
    """Maps over the chunks of a document, and one reduce."""

    name: str = "map-reduce"
    profile: str = "a100-13b"
    num_engines: int = 1
    context_tokens: int = 1100
    baselines: Sequence[str] = ("latency", "latency+cache", "throughput", "throughput+cache")
    features: Sequence[str] = ("task_groups", "sibling_admission", "eager_prefill", "streamed_prefill")
    quick_values: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"documents": [QUICK_DOCUMENT]})
    points: Sequence[Point] = sweep()

    async def run(self, bench: Bench, *, chunk: int, out: int, documents: Sequence[int] | None = None) -> Outcome:
        runs = [
            await bench.driver.run(map_reduce(bench, chunks_of(bench, document, chunk), out)) for document in _documents(bench, documents)
        ]
        return Outcome(mean_seconds(runs))
