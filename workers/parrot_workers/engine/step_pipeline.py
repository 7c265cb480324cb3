"""Steps on their way through the device: planned, launched, and read, the next one launched before this one is read.

The device takes what it is given in the order of one stream. A step that is launched behind another therefore finds the
keys and values, the token ids and the blocks as the step before leaves them, and nobody has to wait for it in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from parrot_kernels import Backend
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.chunk import Chunk
from parrot_workers.engine.host_copy import HostCopy, to_device
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.sampler import sample
from parrot_workers.engine.step_batch import Span
from parrot_workers.engine.step_stats import Phase, PhaseClock, StepCounts


@dataclasses.dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that was launched. Its tokens are those that the rows of its chunks sample, in order."""

    chunks: list[Chunk]
    tokens: HostCopy
    counts: StepCounts
    clock: PhaseClock

    def read(self) -> Iterator[int]:
        """Return the tokens; waits until the device has computed them."""
        with self.clock.measure(Phase.WAIT):
            return iter(self.tokens.read())


class StepPipeline:
    """Plans and launches steps, and has at most one in flight beside the one that its caller takes in.

    With ``runs_ahead`` the step behind the one that is given out is launched already, if it can be planned without the
    tokens of that one (``BatchScheduler.plan_behind``): it reads them on the device. Then the caller may find that a
    sequence of the step in flight has ended, by a stop or an ``abort``: its row is computed in vain, and thrown away.
    The blocks that the row is written to are given to others at once. What others write to them is launched later, and
    so comes after it; and nobody can find what it wrote, for a block is published only when its tokens are known.
    """

    def __init__(
        self,
        scheduler: BatchScheduler,
        runner: ModelRunner,
        kernels: Backend,
        transfer: KVTransfer | None = None,
        *,
        runs_ahead: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._runner: ModelRunner | None = runner
        self._kernels = kernels
        self.transfer = transfer
        self._runs_ahead = runs_ahead
        self.in_flight: StepInFlight | None = None
        """The step behind the one that was given out last."""

    def next(self, *, traced: bool = False) -> StepInFlight | None:
        """Return the step to be taken in now, launched; None if there is nothing to compute.

        The caller must take in all of it and then call ``publish``, or, whatever raised an error, ``restart``.
        ``traced`` names the phases of steps that are planned now in a profiler's trace.
        """
        step = self.in_flight or self._planned(PhaseClock(traced=traced))
        self.in_flight = None
        if step is not None and self._runs_ahead:
            self.in_flight = self._planned_behind(step, PhaseClock(traced=traced))
        return step

    def publish(self) -> None:
        """Make the blocks that the step in flight fills findable, now that the tokens in them are known."""
        if self.in_flight is not None:
            self._scheduler.publish(self.in_flight.chunks)

    def restart(self) -> None:
        """Drop what is in flight, and forget all that was computed: nothing says what the blocks hold."""
        self.in_flight = None
        self._scheduler.restart()

    def close(self) -> None:
        """Let go of the model and of what is in flight, which the device may still be computing."""
        self.in_flight = None
        self._runner = self.transfer = None

    def _planned(self, clock: PhaseClock) -> StepInFlight | None:
        """Plan a step from all that is known, and launch it."""
        scheduler, counts = self._scheduler, StepCounts()
        with clock.measure(Phase.PLAN):
            cached, preempted = scheduler.num_cached_tokens, scheduler.num_preemptions
            chunks = scheduler.plan()
            counts.num_cached_tokens = scheduler.num_cached_tokens - cached
            counts.num_preemptions = scheduler.num_preemptions - preempted
        return self._launched(chunks, counts, clock) if chunks else None

    def _planned_behind(self, step: StepInFlight, clock: PhaseClock) -> StepInFlight | None:
        """Plan the step behind ``step`` without its tokens, and launch it; None if they are needed."""
        with clock.measure(Phase.PLAN):
            chunks = self._scheduler.plan_behind(step.chunks)
        if not chunks:
            return None
        return self._launched(chunks, StepCounts(num_ahead_steps=1), clock, _ids_for(chunks, step.tokens.on_device))

    def _launched(
        self, chunks: list[Chunk], counts: StepCounts, clock: PhaseClock, ids: Tensor | None = None
    ) -> StepInFlight:
        """Give a step to the device; ``ids`` [len(chunks)] stand in place of tokens that the host does not know."""
        assert self._runner is not None, "the engine is closed"
        with clock.measure(Phase.MODEL):
            if self.transfer is not None:
                self.transfer.run(self._scheduler.blocks.take_transfers())
            logits = self._runner.run(
                [Span(chunk.token_ids, chunk.start, chunk.num_rows, chunk.sequence.block_table) for chunk in chunks],
                ids,
            )
        with clock.measure(Phase.SAMPLE):
            sequences = [chunk.sequence for chunk in chunks for _ in range(chunk.num_rows)]
            depths = [(chunk.sampled_row is not None) + depth for chunk in chunks for depth in range(chunk.num_rows)]
            return StepInFlight(chunks, HostCopy(sample(self._kernels, logits, sequences, depths)), counts, clock)


def _ids_for(chunks: list[Chunk], ids: Tensor) -> Tensor:
    """Return the ids that ``chunks`` compute of those that the step before samples."""
    rows = [chunk.sampled_row for chunk in chunks if chunk.sampled_row is not None]
    assert len(rows) == len(chunks), "a step mixes known tokens and unknown ones"
    return ids if len(rows) == len(ids) else ids[to_device(rows, torch.int64, ids.device)]
