"""Our driver: ``python -m benchmarks.queue.systems.parrot_system REDIS_URL WORKLOAD_JSON``.

The serving side is the real one: the scheduler's process and an engine worker's process, whose engine does nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time

import orjson

import parrot_mq as P
from benchmarks.queue.figures import Figures
from benchmarks.queue.systems.processes import serving
from benchmarks.queue.workload import Workload


# Sampled: calls that are equal and deterministic would be run as one.
@P.semantic_function
def noop(after: P.Input, out: P.Output = P.output(max_tokens=1, temperature=1.0)) -> None:  # type: ignore[assignment]
    """{{after}}:{{out}}"""


def times(text: str) -> tuple[int, int]:
    """Return when the engine had the request and when it was done, in ns."""
    added, done = text.split()
    return int(added), int(done)


async def measure(url: str, work: Workload) -> Figures:
    async with P.connect(url) as client, client.session(tenant="bench") as session:
        for _ in range(work.warmup):
            await noop("go").get()

        hops, results = [], []
        for _ in range(work.num_hops):
            start = time.monotonic_ns()
            text = await noop("go").get()
            results.append((time.monotonic_ns() - start) / 1e9)
            hops.append((times(text)[0] - start) / 1e9)

        chains = []
        for _ in range(work.num_chains):
            first = noop("go")
            second = noop(first)
            finished, began = times(await first.get())[1], times(await second.get())[0]
            chains.append((began - finished) / 1e9)

        start = time.monotonic_ns()
        await asyncio.gather(*(noop("go", session=session).get() for _ in range(work.num_jobs)))
        rate = work.num_jobs / ((time.monotonic_ns() - start) / 1e9)
    return Figures.of(hops, chains, results, rate)


def main() -> None:
    url, work = sys.argv[1], Workload(**orjson.loads(sys.argv[2]))
    commands = [
        ["-m", "parrot_mq", "scheduler", "--redis-url", url],
        ["-m", "benchmarks.queue.systems.parrot_engine", url],
    ]
    with serving(commands):
        figures = asyncio.run(measure(url, work))
    print(orjson.dumps(dataclasses.asdict(figures)).decode())


if __name__ == "__main__":
    main()
