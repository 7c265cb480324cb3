"""Summarising a long document: as a chain of refinements, and by map-reduce (Parrot, OSDI'24, section 8.2).

The document's lengths are those of the reference's ten articles, in chunks of 1024 tokens; they follow from the seconds
per output token that it published for each (the shortest has just over 20k tokens).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.apps.application import Application, Calls, Function, Handle
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point, mean_seconds, timed
from benchmarks.apps.drivers import Ran
from parrot_mq.messages import RequestShape

DOCUMENT_CHUNKS = (33, 21, 23, 20, 27, 26, 45, 44, 21, 28)
CHUNK = 1024
DOCUMENTS = (3, 4)
"""Those that are run unless said: the shortest, and the one nearest to the mean."""
QUICK_DOCUMENT = 4


def chunks_of(bench: Bench, document: int, chunk: int) -> list[str]:
    """Return the texts of a document's chunks, the last one shorter where the length is no multiple."""
    total = bench.scale.length(DOCUMENT_CHUNKS[document % len(DOCUMENT_CHUNKS)] * CHUNK)
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


AS_RUN = 474
"""Tokens that the reference's chunks of 1024 hold on average: its splitter counts one more for each word."""


def as_run() -> tuple[Point, ...]:
    """Return the settings of output as the reference's artifact ran them."""
    return tuple(Point(f"out={out}, chunks of {AS_RUN}", {"chunk": AS_RUN, "out": out}) for out in (25, 50, 75, 100))


async def run_chain(
    bench: Bench, *, chunk: int, out: int, chunk_first: bool = True, documents: Sequence[int] | None = None
) -> Outcome:
    """One document at a time, on one engine."""
    runs = []
    for document in _documents(bench, documents):
        application = chain(bench, chunks_of(bench, document, chunk), out, chunk_first=chunk_first)
        runs.append(await bench.driver.run(f"document {document}", application))
    return Outcome(mean_seconds(runs))


CHAIN = Experiment(
    name="chain",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1120, 50),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache"),
    features=("eager_prefill", "streamed_prefill", "deduce_objectives", "prefix_affinity"),
    quick_values={"documents": [QUICK_DOCUMENT]},
    points=(
        *sweep(),
        *as_run(),
        Point("out=25, summary first", {"chunk": CHUNK, "out": 25, "chunk_first": False}),
        Point(
            "out=50, summary first",
            {"chunk": CHUNK, "out": 50, "chunk_first": False},
            features=("eager_prefill", "streamed_prefill"),
        ),
    ),
    run=run_chain,
)


def _documents(bench: Bench, chosen: Sequence[int] | None) -> Sequence[int]:
    return DOCUMENTS[: bench.scale.count(len(DOCUMENTS))] if chosen is None else chosen


async def run_chain_background(bench: Bench, *, rate: float, documents: Sequence[int] = (1,)) -> Outcome:
    """A chain while single requests of other users arrive at random times."""
    rate *= bench.scale.rate
    users: list[asyncio.Task[Ran]] = []
    runs: list[Ran] = []
    for document in documents:
        source = bench.random("background", document)
        chain_run = asyncio.ensure_future(
            bench.driver.run(
                f"document {document}", chain(bench, chunks_of(bench, document, CHUNK), 50, chunk_first=True)
            )
        )
        number = 0
        while rate and not chain_run.done():
            text = bench.text(512, "background", document, number)
            users.append(
                asyncio.ensure_future(bench.driver.run(f"background {document} {number}", _single(bench, text)))
            )
            number += 1
            await asyncio.wait([chain_run], timeout=source.expovariate(rate))
        runs.append(await chain_run)
    others = [await user for user in users]
    extras = {"background_s": round(mean_seconds(others), 3), "num_background": len(others)} if others else {}
    return Outcome(mean_seconds(runs), extras)


CHAIN_BACKGROUND = Experiment(
    name="chain-background",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1120, 50),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache"),
    features=("eager_prefill", "deduce_objectives", "retain_prefixes"),
    points=tuple(Point(f"rate={rate:g}", {"rate": rate}, quick=rate == 2) for rate in (0.0, 1.0, 2.0, 3.0, 3.5)),
    run=run_chain_background,
)


def _single(bench: Bench, text: str) -> Application:
    answer = Function("background", ("", ""), bench.scale.length(50))
    return lambda calls: [calls.call(answer, text)]


async def run_concurrent_chains(bench: Bench, *, count: int) -> Outcome:
    """Many documents at once on one engine."""
    applications = [
        chain(bench, chunks_of(bench, document, 2048), 50, chunk_first=True)
        for document in range(bench.scale.count(count))
    ]
    runs = await timed(
        [bench.driver.run(f"document {number}", application) for number, application in enumerate(applications)]
    )
    return Outcome(mean_seconds(runs), {"applications_s": [round(run.elapsed_s, 3) for run in runs]})


CONCURRENT_CHAINS = Experiment(
    name="concurrent-chains",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(2144, 50),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache"),
    features=("eager_prefill", "streamed_prefill", "deduce_objectives", "retain_prefixes"),
    points=tuple(Point(f"chains={count}", {"count": count}, quick=count == 10) for count in (10, 15, 20, 25)),
    run=run_concurrent_chains,
)


async def run_map_reduce(bench: Bench, *, chunk: int, out: int, documents: Sequence[int] | None = None) -> Outcome:
    """Maps over the chunks of a document, and one reduce."""
    runs = [
        await bench.driver.run(f"document {document}", map_reduce(bench, chunks_of(bench, document, chunk), out))
        for document in _documents(bench, documents)
    ]
    return Outcome(mean_seconds(runs))


MAP_REDUCE = Experiment(
    name="map-reduce",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1050, 50),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache"),
    features=("task_groups", "sibling_admission", "eager_prefill", "streamed_prefill"),
    quick_values={"documents": [QUICK_DOCUMENT]},
    points=(*sweep(), *as_run()),
    run=run_map_reduce,
)
