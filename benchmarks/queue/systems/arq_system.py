"""arq's driver: ``python -m benchmarks.queue.systems.arq_system REDIS_URL POLL_S WORKLOAD_JSON``.

``poll_s`` is both the worker's poll_delay and the caller's poll_delay while it waits for a result; arq's default for
both is 0.5.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time

import orjson
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import result_key_prefix
from arq.jobs import Job

from benchmarks.queue.figures import Figures
from benchmarks.queue.systems.processes import serving
from benchmarks.queue.systems.results import all_read
from benchmarks.queue.workload import Workload

TIMEOUT_S = 300
CONCURRENT_SUBMITS = 100


async def enqueue(pool: ArqRedis, name: str) -> Job:
    job = await pool.enqueue_job(name)
    assert job is not None
    return job


async def measure(url: str, poll_s: float, work: Workload) -> Figures:
    pool = await create_pool(RedisSettings.from_dsn(url), job_serializer=orjson.dumps, job_deserializer=orjson.loads)
    for _ in range(work.warmup):
        await (await enqueue(pool, "noop")).result(timeout=TIMEOUT_S, poll_delay=poll_s)

    hops, results = [], []
    for _ in range(work.num_hops):
        start = time.monotonic_ns()
        job = await enqueue(pool, "noop")
        began = await job.result(timeout=TIMEOUT_S, poll_delay=poll_s)
        results.append((time.monotonic_ns() - start) / 1e9)
        hops.append((began - start) / 1e9)

    chains = []
    for _ in range(work.num_chains):
        finished, job_id = await (await enqueue(pool, "first_of_two")).result(timeout=TIMEOUT_S, poll_delay=poll_s)
        second = Job(job_id, pool, _deserializer=orjson.loads)
        chains.append((await second.result(timeout=TIMEOUT_S, poll_delay=poll_s) - finished) / 1e9)

    start = time.monotonic_ns()
    gate = asyncio.Semaphore(CONCURRENT_SUBMITS)

    async def submit() -> str:
        async with gate:
            return (await enqueue(pool, "noop")).job_id

    ids = await asyncio.gather(*(submit() for _ in range(work.num_jobs)))
    await all_read(pool.mget, [result_key_prefix + job_id for job_id in ids])
    rate = work.num_jobs / ((time.monotonic_ns() - start) / 1e9)
    await pool.aclose()
    return Figures.of(hops, chains, results, rate)


def main() -> None:
    url, poll_s, work = sys.argv[1], sys.argv[2], Workload(**orjson.loads(sys.argv[3]))
    with serving([["-m", "benchmarks.queue.systems.arq_jobs", url, poll_s]] * 2):
        figures = asyncio.run(measure(url, float(poll_s), work))
    print(orjson.dumps(dataclasses.asdict(figures)).decode())


if __name__ == "__main__":
    main()
