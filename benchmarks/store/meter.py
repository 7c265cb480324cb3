"""How long Redis works on each script call that this process makes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

from parrot_mq.store import Partition
from parrot_mq.store.scripts import load_scripts


class Meter:
    """Times of script calls in milliseconds, by script.

    Calls are made one after the other, pipelined ones too, and Redis is asked after each how much processor time its
    main thread has used. Unlike SLOWLOG that counts reading the arguments and writing the append-only file, and does
    not count what other processes of the machine take.
    """

    def __init__(self) -> None:
        self.scenario = ""
        """What is going on: each script's longest call is reported with it."""
        self.times_ms: defaultdict[str, list[float]] = defaultdict(list)
        self.longest: dict[str, tuple[float, str]] = {}
        self._turn = asyncio.Lock()
        self._own_ms = -1.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Measure every call of this process meanwhile. No other process may use the same Redis."""
        call = Partition.call

        async def measured(partition: Partition, name: str, *args: str | int | float) -> Any:
            async with self._turn:
                if self._own_ms < 0:
                    await self._prepare(partition)
                before_ms = await _busy_ms(partition)
                answer = await call(partition, name, *args)
                self._note(name, await _busy_ms(partition) - before_ms - self._own_ms)
                return answer

        with mock.patch.object(Partition, "call", measured):
            yield

    async def _prepare(self, partition: Partition) -> None:
        """Compile the scripts, which the first call of each would be measured with; measure the measuring."""
        for script in load_scripts(partition.settings).values():
            await partition.redis.script_load(script.source)
        asked = [await _busy_ms(partition) for _ in range(21)]
        self._own_ms = statistics.median(after - before for before, after in itertools.pairwise(asked))

    def _note(self, name: str, time_ms: float) -> None:
        self.times_ms[name].append(time_ms)
        self.longest[name] = max(self.longest.get(name, (0.0, "")), (time_ms, self.scenario))

    def figures(self) -> dict[str, dict[str, float]]:
        """Return each script's number of calls, and their median and longest time, the longest first."""
        return {
            name: {
                "calls": len(self.times_ms[name]),
                "p50_ms": round(statistics.median(self.times_ms[name]), 3),
                "max_ms": round(longest_ms, 3),
            }
            for name, (longest_ms, _) in sorted(self.longest.items(), key=lambda item: -item[1][0])
        }


async def _busy_ms(partition: Partition) -> float:
    cpu = await partition.redis.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]) * 1000
