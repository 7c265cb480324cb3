"""taskiq's broker and tasks: the stream broker of taskiq-redis, orjson, results in Redis."""

from __future__ import annotations

import os
import time
from typing import Any

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

url = os.environ["BENCHMARK_REDIS_URL"]
# The group starts at 0: by default it starts at "$" and loses what was sent before the first worker came up.
broker = RedisStreamBroker(url, consumer_id="0").with_result_backend(
    RedisAsyncResultBackend(url, result_ex_time=600, serializer=ORJSONSerializer())
)
broker.with_serializer(ORJSONSerializer())


@broker.task(task_name="noop")
async def noop() -> int:
    return time.monotonic_ns()


@broker.task(task_name="first_of_two")
async def first_of_two() -> list[Any]:
    """End by submitting the dependent task."""
    finished = time.monotonic_ns()
    task = await noop.kiq()
    return [finished, task.task_id]
