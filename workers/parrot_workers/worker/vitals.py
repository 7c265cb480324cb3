"""What an engine says about itself in its heartbeat."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from parrot_mq.messages import EngineRecord, EngineState
from parrot_workers.engine.port import EngineSpec, EngineStats

MAX_RESIDENT = 256
_SMOOTHING = 0.5


class Vitals:
    """Gathers the heartbeat. The event loop changes it, the keeper's thread calls ``describe``."""

    def __init__(self, engine_id: str, kind: str, model: str) -> None:
        self._lock = threading.Lock()
        self._stats: Callable[[], EngineStats | None] = lambda: None
        self._backlog: Callable[[], int] = lambda: 0
        self._resident: OrderedDict[str, None] = OrderedDict()
        self._record = EngineRecord(
            id=engine_id,
            kind=kind,
            model=model,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=round(time.time() * 1000),
        )
        self._counted = (time.monotonic(), 0)
        self._tokens_per_s = 0.0

    def watch(self, stats: Callable[[], EngineStats | None], backlog: Callable[[], int]) -> None:
        """Take the engine's newest snapshot from ``stats``, the number of assignments not yet claimed from ``backlog``.

        Both are called on the keeper's thread.
        """
        self._stats, self._backlog = stats, backlog

    @property
    def engine_id(self) -> str:
        """The id of this incarnation."""
        return self._record.id

    @property
    def model(self) -> str:
        """The model's public name, which requests ask for."""
        return self._record.model

    @property
    def state(self) -> EngineState:
        """Its state."""
        return self._record.state

    def become(self, state: EngineState) -> None:
        """Enter a state."""
        with self._lock:
            self._record = dataclasses.replace(self._record, state=state)

    def rename(self, engine_id: str) -> None:
        """Go on under another id, with nothing resident that anybody was told of."""
        with self._lock:
            self._record = dataclasses.replace(self._record, id=engine_id)
            self._resident.clear()

    def loaded(self, spec: EngineSpec) -> None:
        """Take over what is known once the model is loaded; the model's public name stays the one given."""
        with self._lock:
            self._record = dataclasses.replace(
                self._record,
                state=EngineState.READY,
                max_num_seqs=spec.max_num_seqs,
                max_model_len=spec.max_model_len,
                block_size=spec.block_size,
                num_blocks=spec.num_blocks,
                num_free_blocks=spec.num_blocks,
                cost=spec.cost,
            )

    def note_prefix(self, digests: Iterable[str]) -> None:
        """Remember prefixes whose blocks were just computed or read."""
        with self._lock:
            for digest in digests:
                self._resident[digest] = None
                self._resident.move_to_end(digest)
            while len(self._resident) > MAX_RESIDENT:
                self._resident.popitem(last=False)

    def describe(self) -> EngineRecord:
        """Return the record for a heartbeat now. ``tokens_per_s`` is smoothed over a few heartbeats."""
        stats = self._stats()
        with self._lock:
            record = dataclasses.replace(self._record, resident=tuple(reversed(self._resident)))
            if stats is None:
                return record
            self._measure(stats.num_generated_tokens)
            return dataclasses.replace(
                record,
                num_running=stats.num_running,
                num_waiting=stats.num_waiting + self._backlog(),
                num_blocks=stats.num_blocks,
                num_free_blocks=stats.num_free_blocks,
                cost=stats.cost or record.cost,
                tokens_per_s=round(self._tokens_per_s, 2),
            )

    def _measure(self, num_generated: int) -> None:
        now, (then, before) = time.monotonic(), self._counted
        if now - then < 0.05:
            return
        rate = (num_generated - before) / (now - then)
        self._tokens_per_s += _SMOOTHING * (rate - self._tokens_per_s)
        self._counted = (now, num_generated)
