"""Situations that single features are for; not the reference's, and small.

What a feature saves shows where that is short: KV memory that others want as well, engines among which a group could be
scattered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.apps.application import Application, Calls, Function, Handle
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point, after, arrivals_s, mean_seconds
from benchmarks.apps.drivers import Ran
from parrot_mq.messages import RequestShape

RUBRIC, DRAFT, REMARKS, ROUNDS = 3500, 100, 20, 10
"""Tokens of what a judge goes by, of a draft, and of what is said about it; drafts of an application."""


async def run_retention(bench: Bench, *, rate: float, applications: int = 2) -> Outcome:
    """Drafts that are judged by a long rubric again and again, while the prompts of others go through the memory.

    Between two reads of a rubric so much else is computed that the least recently used is the rubric. That it will be
    read again stands in the graph.
    """
    working = [
        asyncio.ensure_future(bench.driver.run(f"program {number}", judged_drafts(bench, number)))
        for number in range(applications)
    ]
    others = await _beside(bench, working, rate, prompt=1500, num_output=20)
    return Outcome(mean_seconds([await task for task in working]), others)


def judged_drafts(bench: Bench, number: int) -> Application:
    """Write, have it judged, write again with what was said."""
    write = Function("write", (bench.text(200, "write", number), ""), bench.scale.length(DRAFT))
    judge = Function("judge", (bench.text(RUBRIC, "rubric", number), ""), bench.scale.length(REMARKS))

    def application(calls: Calls) -> Sequence[Handle]:
        remarks: Handle = bench.text(100, "task", number)
        for _ in range(ROUNDS):
            remarks = calls.call(judge, calls.call(write, remarks))
        return [remarks]

    return application


RETENTION = Experiment(
    name="retention",
    profile="a100-13b",
    num_engines=1,
    num_blocks=1000,
    shape=RequestShape(1500, 40),
    baselines=("throughput+cache",),
    features=("retain_prefixes",),
    points=(Point("rate=2", {"rate": 2.0}, quick=True),),
    run=run_retention,
)
"""16,000 tokens of KV memory: 13 GB beside the weights, a card of 40 GB."""


DOCUMENT, QUESTIONS, ANSWER = 4000, 16, 100


async def run_task_groups(bench: Bench, *, rate: float, applications: int = 12) -> Outcome:
    """Sixteen questions about one long document, and a call that reads all answers, on engines that others use too."""
    starts = arrivals_s(bench.random("questions"), 0.5 * bench.scale.rate, applications)
    working = [
        asyncio.ensure_future(after(start, bench.driver.run(f"document {number}", questions(bench, number))))
        for number, start in enumerate(starts)
    ]
    others = await _beside(bench, working, rate, prompt=500, num_output=200)
    return Outcome(mean_seconds([await task for task in working]), others)


def questions(bench: Bench, number: int) -> Application:
    """Ask everything at once, then put the answers together."""
    length = bench.scale.length(ANSWER)
    ask = Function("ask", (bench.text(DOCUMENT, "document", number), ""), length)
    merge = Function("merge", (bench.text(20, "merge"), *[""] * QUESTIONS), length)

    def application(calls: Calls) -> Sequence[Handle]:
        asked = [bench.text(20, "question", number, question) for question in range(QUESTIONS)]
        return [calls.call(merge, *[calls.call(ask, question) for question in asked])]

    return application


TASK_GROUPS = Experiment(
    name="task-groups",
    profile="a100-13b",
    num_engines=4,
    shape=RequestShape(4020, 100, 4000),
    baselines=("latency+cache", "throughput+cache"),
    features=("task_groups", "sibling_admission", "prefix_affinity", "shared_attention"),
    points=tuple(Point(f"rate={rate:g}", {"rate": rate}, quick=rate == 4) for rate in (2.0, 4.0)),
    run=run_task_groups,
)


async def _beside(
    bench: Bench, working: Sequence[asyncio.Task[Ran]], rate: float, *, prompt: int, num_output: int
) -> dict[str, float]:
    """Have single requests of others come at random times until ``working`` is done; return their mean seconds."""
    source = bench.random("others")
    answer = Function("other", ("", ""), bench.scale.length(num_output))
    users: list[asyncio.Task[Ran]] = []

    def user(number: int) -> Application:
        text = bench.text(prompt, "other", number)
        return lambda calls: [calls.call(answer, text)]

    while not all(task.done() for task in working):
        users.append(asyncio.ensure_future(bench.driver.run(f"other {len(users)}", user(len(users)))))
        await asyncio.wait(working, timeout=source.expovariate(rate * bench.scale.rate))
    return {"background_s": round(mean_seconds([await one for one in users]), 3), "num_background": len(users)}
