"""Requests that share prompts: a copilot's users, four public applications, and both kinds of work at once.

Parrot, OSDI'24, sections 8.3 and 8.5; lengths are those of its workloads.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

import parrot_mq as P
from benchmarks.apps.application import Application, Function
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point, after, arrivals_s, mean_seconds, timed
from benchmarks.apps.drivers import Ran
from benchmarks.apps.experiments.summarise import CHUNK, chunks_of, map_reduce
from parrot_mq.messages import RequestShape

COPILOT_SHARED = 5107
COPILOT_LENGTHS = (
    (6183, 619), (6197, 393), (6908, 183), (6081, 191), (5882, 393), (5916, 209), (5992, 212), (6814, 192),
    (6066, 800), (6157, 360), (6024, 192), (6093, 232), (6105, 232), (6024, 191), (6278, 351), (6015, 351),
    (6334, 619), (6018, 191), (6169, 393), (6296, 248), (5941, 248), (6089, 360), (6009, 360), (6032, 393),
    (6074, 209), (5923, 232), (5859, 232), (6139, 800), (5959, 360), (5915, 269), (6112, 360), (6031, 195),
    (6124, 800), (6065, 393), (6304, 269), (6050, 256), (6073, 232), (5835, 303), (6908, 269), (6024, 209),
    (7048, 251), (5932, 209), (5945, 800), (6090, 183), (5972, 800), (6163, 192), (5973, 393), (6158, 192),
    (6404, 212), (5857, 313), (6364, 800), (6203, 196), (6150, 195), (6036, 212), (6694, 195), (6038, 351),
    (6414, 393), (6000, 351), (6154, 232), (5999, 251), (6890, 232), (7100, 196), (6924, 351), (6032, 360),
)  # fmt: skip
"""Tokens of prompt (of which 5107 are common) and output of the reference's 64 users."""


async def run_copilot(bench: Bench, *, batch: int) -> Outcome:
    """64 users behind one system prompt, ``batch`` of them at a time, on one engine; seconds of a request."""
    system = bench.text(COPILOT_SHARED, "system prompt")
    slots = asyncio.Semaphore(batch)

    async def user(number: int, prompt: int, out: int) -> Ran:
        answer = Function("copilot", (system, ""), bench.scale.length(out))
        query = bench.text(prompt - COPILOT_SHARED, "user", number)
        async with slots:
            return await bench.driver.run(f"user {number}", lambda calls: [calls.call(answer, query)])

    lengths = COPILOT_LENGTHS[: max(batch, bench.scale.count(len(COPILOT_LENGTHS)))]
    runs = await timed([user(number, *sizes) for number, sizes in enumerate(lengths)])
    wall_s = max(run.end_s for run in runs) - min(run.start_s for run in runs)
    return Outcome(mean_seconds(runs), {"wall_s": round(wall_s, 3)})


COPILOT = Experiment(
    name="copilot",
    profile="a100-7b",
    num_engines=1,
    shape=RequestShape(6170, 305, 5107),
    baselines=("throughput", "throughput+cache", "throughput+pages"),
    features=("shared_attention", "prefix_caching", "prefix_affinity"),
    points=tuple(Point(f"batch={batch}", {"batch": batch}, quick=batch == 16) for batch in (8, 16, 32, 64)),
    run=run_copilot,
)


GPTS = {
    "productivity": (7437, 7, 704),
    "image": (1116, 8, 89),
    "programming": (1694, 4, 631),
    "data": (2031, 4, 416),
}
"""Tokens of the shared prompt, of a query and of its output."""


async def run_gpts(bench: Bench, *, rate: float, count: int = 120) -> Outcome:
    """Four applications, each with a prompt of its own, at a rate of Poisson arrivals on four engines."""
    source = bench.random("gpts", rate)
    shared = {
        name: Function(name, (bench.text(prompt, name), ""), bench.scale.length(out))
        for name, (prompt, _, out) in GPTS.items()
    }
    names = list(GPTS) * -(-bench.scale.count(count) // len(GPTS))
    source.shuffle(names)
    starts = arrivals_s(source, rate * bench.scale.rate, len(names))

    def one(number: int, name: str) -> Application:
        query = bench.text(GPTS[name][1], "query", number)
        return lambda calls: [calls.call(shared[name], query)]

    runs = await timed(
        [
            after(start, bench.driver.run(f"user {n}", one(n, name)))
            for n, (name, start) in enumerate(zip(names, starts, strict=True))
        ]
    )
    normalised = statistics.fmean(run.normalised_s for run in runs)
    return Outcome(mean_seconds(runs), {"normalised_ms": round(1000 * normalised, 2)})


GPTS_SERVING = Experiment(
    name="gpts",
    profile="a6000-7b",
    num_engines=4,
    shape=RequestShape(3075, 460, 3069),
    baselines=("latency", "latency+cache", "throughput", "throughput+cache", "throughput+pages"),
    features=("prefix_affinity", "shared_attention", "prefix_caching", "retain_prefixes"),
    quick_values={"count": 80},
    points=tuple(
        Point(
            f"rate={rate:g}",
            {"rate": rate},
            quick=rate == 2,
            baselines=None if rate == 2 else ("throughput", "throughput+cache", "throughput+pages"),
        )
        for rate in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    ),
    run=run_gpts,
)


CHAT_LIMIT = 2048
MAP_REDUCE_GAPS_S = (0.0, 0.5, 0.5, 10.0, 0.5, 0.5, 10.0, 0.5, 0.5)
"""Between the nine map-reduce applications."""
NUM_CHATS, NUM_APPLICATIONS = 40, len(MAP_REDUCE_GAPS_S)


async def run_mixed(bench: Bench, *, chats: int, applications: int, one_document: bool = False) -> Outcome:
    """40 chats, one a second, beside nine map-reduce applications, on four engines; seconds of a map-reduce.

    Chats read their answer as it comes and ask for its first token, as a stream does unless told otherwise; map-reduces
    ask for throughput. Also each kind alone, which the figures of both are held against.

    ``chat_tpot_ms`` is the mean over chats, each counted the same, of the time between its first token and its last, as
    its client sees them: the network's part is the same at both ends. Of the chats a tenth come when the map-reduces
    are done, here as in the reference's runs. ``map_reduce_tokens_per_s`` is all their output over the time from the
    first one's start to the last one's end. The nine come within 23 s, and alone keep four engines busy for less than
    that, so that this figure is bounded by their arrival: it tells by how much the last ones end later. What each of
    them takes longer is in the seconds.
    """
    source = bench.random("chats")
    lengths = [_chat_lengths(source.random(), source.random()) for _ in range(bench.scale.count(NUM_CHATS))][:chats]

    def chat(number: int, prompt: int, out: int) -> Application:
        answer = Function(f"chat_{number}", ("", ""), bench.scale.length(out))
        return lambda calls: [calls.call(answer, bench.text(prompt, "chat", number))]

    talking = [
        after(number / bench.scale.rate, bench.driver.run(f"chat {number}", chat(number, *sizes), P.TTFT, stream=True))
        for number, sizes in enumerate(lengths)
    ]
    starts = [sum(MAP_REDUCE_GAPS_S[: number + 1]) / bench.scale.rate for number in range(applications)]
    documents = [
        map_reduce(bench, _document(bench, 0 if one_document else number), 50)
        for number in range(bench.scale.count(applications))
    ][:applications]
    working = [
        after(start, bench.driver.run(f"document {number}", application, P.THROUGHPUT))
        for number, (start, application) in enumerate(zip(starts, documents, strict=False))
    ]
    both = await timed([*talking, *working])
    talked, worked = both[: len(talking)], both[len(talking) :]
    return Outcome(mean_seconds(worked or talked), _figures(talked, worked))


MIXED = Experiment(
    name="mixed",
    profile="a6000-7b",
    num_engines=4,
    shape=RequestShape(1050, 50),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache"),
    features=("deduce_objectives", "task_groups", "sibling_admission", "prefix_affinity"),
    points=(
        Point("both", {"chats": NUM_CHATS, "applications": NUM_APPLICATIONS}, quick=True),
        Point("chats alone", {"chats": NUM_CHATS, "applications": 0}, quick=True, features=(), baselines=()),
        Point(
            "map-reduce alone", {"chats": 0, "applications": NUM_APPLICATIONS}, quick=True, features=(), baselines=()
        ),
        Point(
            "both, one document",
            {"chats": NUM_CHATS, "applications": NUM_APPLICATIONS, "one_document": True},
            features=("single_flight",),
            baselines=("throughput+cache",),
        ),
    ),
    run=run_mixed,
)


def _figures(talked: Sequence[Ran], worked: Sequence[Ran]) -> dict[str, float]:
    extras = {}
    if talked:
        extras["chat_normalised_ms"] = round(1000 * statistics.fmean(run.normalised_s for run in talked), 2)
        extras["chat_tpot_ms"] = round(1000 * statistics.fmean(run.tpot_s for run in talked), 2)
    if worked:
        wall_s = max(run.end_s for run in worked) - min(run.start_s for run in worked)
        extras["map_reduce_wall_s"] = round(wall_s, 3)
        extras["map_reduce_tokens_per_s"] = round(sum(run.num_output for run in worked) / wall_s, 2)
    return extras


def _document(bench: Bench, number: int) -> list[str]:
    first = chunks_of(bench, 0, CHUNK)
    size = bench.scale.length(CHUNK)
    return [bench.texts.text(size, "mixed document", number, chunk) for chunk in range(len(first))]


def _chat_lengths(first: float, second: float) -> tuple[int, int]:
    """Return tokens of prompt and answer from two draws: as the reference filters its conversations.

    Prompts of 4 to 1024 tokens, most of them short, and answers that keep the whole under 2048.
    """
    prompt = round(4 * (1024 / 4) ** first)
    return prompt, round(20 + second * (min(600, CHAT_LIMIT - prompt) - 20))
