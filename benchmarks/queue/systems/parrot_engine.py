"""Our serving side's engine: ``python -m benchmarks.queue.systems.parrot_engine REDIS_URL``."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

from parrot_mq.store import connect
from parrot_workers.engine.port import EngineSpec, EngineStats, FinishReason, SequenceInput, SequenceOutput
from parrot_workers.worker.shell import EngineWorker

MAX_NUM_SEQS = 256


class ClockEngine:
    """A no-op behind the engine port: each output is ``<when it was added> <when it was done>`` in monotonic ns."""

    def __init__(self) -> None:
        self._added: dict[str, int] = {}
        self._num_done = 0

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec("noop", "clock", MAX_NUM_SEQS, 1 << 20, 16, 1 << 20)

    def add(self, sequence: SequenceInput) -> None:
        self._added[sequence.id] = time.monotonic_ns()

    def abort(self, sequence_id: str) -> None:
        self._added.pop(sequence_id, None)

    def step(self) -> list[SequenceOutput]:
        added, self._added = self._added, {}
        self._num_done += len(added)
        return [
            SequenceOutput(i, finish=FinishReason.STOP, full_text=f"{at} {time.monotonic_ns()}", num_output_tokens=1)
            for i, at in added.items()
        ]

    def stats(self) -> EngineStats:
        return EngineStats(len(self._added), 0, 1 << 20, 1 << 20, num_generated_tokens=self._num_done)

    def has_work(self) -> bool:
        return bool(self._added)

    def check(self) -> None:
        """There are no books."""

    def close(self) -> None:
        self._added.clear()


async def serve(url: str) -> None:
    worker = EngineWorker(lambda: connect(url), ClockEngine, name="noop", kind="clock")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
