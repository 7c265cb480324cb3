"""taskiq's driver: ``python -m benchmarks.queue.systems.taskiq_system REDIS_URL CHECK_S WORKLOAD_JSON``."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from typing import Any

import orjson
import redis.asyncio

from benchmarks.queue.figures import Figures
from benchmarks.queue.systems.processes import serving
from benchmarks.queue.workload import Workload

TIMEOUT_S = 300.0
CONCURRENT_SUBMITS = 100


async def measure(url: str, check_s: float, work: Workload) -> Figures:
    from benchmarks.queue.systems.taskiq_jobs import broker, first_of_two, noop

    await broker.startup()

    async def value(task: Any) -> Any:
        return (await task.wait_result(check_interval=check_s, timeout=TIMEOUT_S)).return_value

    for _ in range(work.warmup):
        await value(await noop.kiq())

    hops, results = [], []
    for _ in range(work.num_hops):
        start = time.monotonic_ns()
        began = await value(await noop.kiq())
        results.append((time.monotonic_ns() - start) / 1e9)
        hops.append((began - start) / 1e9)

    chains = []
    for _ in range(work.num_chains):
        finished, task_id = await value(await first_of_two.kiq())
        deadline = time.monotonic() + TIMEOUT_S
        while not await broker.result_backend.is_result_ready(task_id):
            if time.monotonic() > deadline:
                raise TimeoutError(task_id)
            await asyncio.sleep(check_s)
        began = (await broker.result_backend.get_result(task_id)).return_value
        chains.append((began - finished) / 1e9)

    start = time.monotonic_ns()
    gate = asyncio.Semaphore(CONCURRENT_SUBMITS)

    async def submit() -> str:
        async with gate:
            return str((await noop.kiq()).task_id)

    missing = list(await asyncio.gather(*(submit() for _ in range(work.num_jobs))))
    reader = redis.asyncio.Redis.from_url(url)
    while missing:  # All results read, in large reads, as for arq.
        values = await reader.mget(missing)
        missing = [key for key, found in zip(missing, values, strict=True) if found is None]
        if missing:
            await asyncio.sleep(0.02)
    rate = work.num_jobs / ((time.monotonic_ns() - start) / 1e9)
    await reader.aclose()
    await broker.shutdown()
    return Figures.of(hops, chains, results, rate)


def main() -> None:
    url, check_s, work = sys.argv[1], float(sys.argv[2]), Workload(**orjson.loads(sys.argv[3]))
    os.environ["BENCHMARK_REDIS_URL"] = url
    worker = [
        "-m",
        "taskiq",
        "worker",
        "--workers",
        "1",
        "--log-level",
        "WARNING",
        "benchmarks.queue.systems.taskiq_jobs:broker",
    ]
    with serving([worker] * 2):
        figures = asyncio.run(measure(url, check_s, work))
    print(orjson.dumps(dataclasses.asdict(figures)).decode())


if __name__ == "__main__":
    main()
