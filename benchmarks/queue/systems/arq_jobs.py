"""arq's worker: ``python -m benchmarks.queue.systems.arq_jobs REDIS_URL POLL_S``."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson
from arq.connections import RedisSettings
from arq.worker import Worker, func


async def noop(ctx: dict[str, Any]) -> int:
    return time.monotonic_ns()


async def first_of_two(ctx: dict[str, Any]) -> list[Any]:
    """End by submitting the dependent job, as an arq application chains its work."""
    finished = time.monotonic_ns()
    job = await ctx["redis"].enqueue_job("noop")
    return [finished, job.job_id]


def main() -> None:
    url, poll_s = sys.argv[1], float(sys.argv[2])
    Worker(
        functions=[func(noop, keep_result=600), func(first_of_two, keep_result=600)],
        redis_settings=RedisSettings.from_dsn(url),
        poll_delay=poll_s,
        max_jobs=200,
        job_serializer=orjson.dumps,
        job_deserializer=orjson.loads,
        allow_abort_jobs=False,
        handle_signals=True,
    ).run()


if __name__ == "__main__":
    main()
