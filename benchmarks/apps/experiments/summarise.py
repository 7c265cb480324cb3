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
from benchmarks.apps.experiments.as_run import chunks_as_run, concurrent_chunks_as_run
from benchmarks.apps.systems import PREFILL_AHEAD
from parrot_mq.messages import RequestShape

DOCUMENT_CHUNKS = (33, 21, 23, 20, 27, 26, 45, 44, 21, 28)
CHUNK = 1024
DOCUMENTS = (3, 9)
"""Those that are run unless said: the shortest, and the one nearest to the mean. (Of that as near, number 4, two of
the seconds that the reference published are twice those beside them.)"""
QUICK_DOCUMENT = 9
BASELINES = ("reference", "latency-6144", "latency", "latency+cache", "throughput", "throughput+cache")
AS_RUN_BASELINES = ("reference", "latency-6144", "latency+cache", "throughput+cache")


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


def as_run() -> tuple[Point, ...]:
    """Return the settings of output as the reference's artifact ran them."""
    return tuple(
        Point(f"out={out}, as run", {"chunk": CHUNK, "out": out, "as_run": True}, baselines=AS_RUN_BASELINES)
        for out in (25, 50, 75, 100)
    )


def _chunks(bench: Bench, document: int, chunk: int, as_run: bool) -> list[str]:
    return chunks_as_run(bench, document) if as_run else chunks_of(bench, document, chunk)


async def run_chain(
    bench: Bench,
    *,
    chunk: int,
    out: int,
    chunk_first: bool = True,
    as_run: bool = False,
    documents: Sequence[int] | None = None,
) -> Outcome:
    """One document at a time, on one engine."""
    runs = []
    for document in _documents(bench, documents):
        application = chain(bench, _chunks(bench, document, chunk, as_run), out, chunk_first=chunk_first)
        runs.append(await bench.driver.run(f"document {document}", application))
    return Outcome(mean_seconds(runs))


CHAIN = Experiment(
    name="chain",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1120, 50),
    reference_tokens=4096,
    baselines=BASELINES,
    features=(PREFILL_AHEAD, "eager_prefill", "streamed_prefill", "deduce_objectives", "prefix_affinity"),
    quick_values={"documents": [QUICK_DOCUMENT]},
    points=(
        *sweep(),
        *as_run(),
        Point("out=25, summary first", {"chunk": CHUNK, "out": 25, "chunk_first": False}),
        Point(
            "out=50, summary first",
            {"chunk": CHUNK, "out": 50, "chunk_first": False},
            features=(PREFILL_AHEAD, "eager_prefill", "streamed_prefill"),
        ),
    ),
    run=run_chain,
)


def _documents(bench: Bench, chosen: Sequence[int] | None) -> Sequence[int]:
    return DOCUMENTS[: bench.scale.count(len(DOCUMENTS))] if chosen is None else chosen


async def run_chain_background(
    bench: Bench, *, rate: float, as_run: bool = False, documents: Sequence[int] = (3,)
) -> Outcome:
    """A chain while single requests of other users arrive at random times."""
    rate *= bench.scale.rate
    users: list[asyncio.Task[Ran]] = []
    runs: list[Ran] = []
    for document in documents:
        source = bench.random("background", document)
        chunks = _chunks(bench, document, CHUNK, as_run)
        chain_run = asyncio.ensure_future(
            bench.driver.run(f"document {document}", chain(bench, chunks, 50, chunk_first=True))
        )
        number = 0
        while rate and not chain_run.done():
            user = _user(bench, document, number, as_run=as_run)
            users.append(asyncio.ensure_future(bench.driver.run(f"background {document} {number}", user)))
            number += 1
            await asyncio.wait([chain_run], timeout=source.expovariate(rate))
        runs.append(await chain_run)
    others = [await user for user in users]
    extras = {"background_s": round(mean_seconds(others), 3), "num_background": len(others)} if others else {}
    return Outcome(mean_seconds(runs), extras)


RATES = (0.0, 1.0, 2.0, 3.0, 3.5)
CHAIN_BACKGROUND = Experiment(
    name="chain-background",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1120, 50),
    reference_tokens=4096,
    baselines=BASELINES,
    features=(PREFILL_AHEAD, "eager_prefill", "deduce_objectives", "retain_prefixes"),
    points=(
        *(Point(f"rate={rate:g}", {"rate": rate}, quick=rate == 2) for rate in RATES),
        *(
            Point(f"rate={rate:g}, as run", {"rate": rate, "as_run": True}, baselines=AS_RUN_BASELINES)
            for rate in RATES
        ),
    ),
    run=run_chain_background,
)


def _user(bench: Bench, document: int, number: int, *, as_run: bool) -> Application:
    """A request of 512 tokens. As run, they were all the same: here all but the last token, so that none is run once
    for several, which the reference does not do."""
    common = 511 if as_run else 0
    answer = Function("background", (bench.text(common, "background"), ""), bench.scale.length(50))
    text = bench.text(512 - common, "background", document, number)
    return lambda calls: [calls.call(answer, text)]


async def run_concurrent_chains(bench: Bench, *, count: int, as_run: bool = False) -> Outcome:
    """Many documents at once on one engine."""

    def chunks(document: int) -> list[str]:
        return concurrent_chunks_as_run(bench, document) if as_run else chunks_of(bench, document, 2048)

    applications = [
        chain(bench, chunks(document), 50, chunk_first=True) for document in range(bench.scale.count(count))
    ]
    runs = await timed(
        [bench.driver.run(f"document {number}", application) for number, application in enumerate(applications)]
    )
    return Outcome(mean_seconds(runs), {"applications_s": [round(run.elapsed_s, 3) for run in runs]})


COUNTS = (10, 15, 20, 25)
CONCURRENT_CHAINS = Experiment(
    name="concurrent-chains",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(2144, 50),
    reference_tokens=4096,
    baselines=BASELINES,
    features=(PREFILL_AHEAD, "eager_prefill", "streamed_prefill", "deduce_objectives", "retain_prefixes"),
    points=(
        *(Point(f"chains={count}", {"count": count}, quick=count == 10) for count in COUNTS),
        *(
            Point(f"chains={count}, as run", {"count": count, "as_run": True}, baselines=AS_RUN_BASELINES)
            for count in COUNTS
        ),
    ),
    run=run_concurrent_chains,
)


async def run_map_reduce(
    bench: Bench, *, chunk: int, out: int, as_run: bool = False, documents: Sequence[int] | None = None
) -> Outcome:
    """Maps over the chunks of a document, and one reduce."""
    runs = [
        await bench.driver.run(f"document {document}", map_reduce(bench, _chunks(bench, document, chunk, as_run), out))
        for document in _documents(bench, documents)
    ]
    return Outcome(mean_seconds(runs))


MAP_REDUCE = Experiment(
    name="map-reduce",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(1050, 50),
    reference_tokens=4096,
    baselines=BASELINES,
    features=("task_groups", "sibling_admission", PREFILL_AHEAD, "eager_prefill", "streamed_prefill"),
    quick_values={"documents": [QUICK_DOCUMENT]},
    points=(*sweep(), *as_run()),
    run=run_map_reduce,
)
