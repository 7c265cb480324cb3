"""What a step did and where its time went."""

from __future__ import annotations

import dataclasses
import enum
import time
from types import TracebackType

from torch.profiler import record_function

from parrot_workers.engine.chunk import Chunk


class Phase(enum.StrEnum):
    """The parts of a step, in order."""

    PLAN = "plan"
    """Choose what runs, allot blocks, look up drafts."""
    MODEL = "model"
    """Build the batch and compute the logits; on a GPU, have them computed."""
    SAMPLE = "sample"
    """Choose the tokens, likewise."""
    WAIT = "wait"
    """Until the tokens are there: the time of a GPU, as far as the host had nothing else to do."""
    POSTPROCESS = "postprocess"
    """Verify drafts, detokenise, look for stops."""


@dataclasses.dataclass(slots=True)
class StepCounts:
    """Sums over one step, or over many.

    ``num_decode_tokens`` counts sequences that had one token to compute, ``num_prefill_tokens`` the tokens of all
    others and of prompts. ``num_cached_tokens`` are prompt tokens found in the prefix cache, ``num_draft_tokens`` those
    that speculative decoding proposed and ``num_accepted_tokens`` those of them that were right.
    ``num_ahead_steps`` counts steps that were launched before the tokens of the step before were read, and
    ``num_discarded_tokens`` what they computed for sequences that had ended by then, which counts as nothing else.
    """

    num_steps: int = 0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_ahead_steps: int = 0
    num_discarded_tokens: int = 0

    def count(self, chunk: Chunk) -> None:
        """Add a chunk's tokens."""
        if chunk.is_prefill:
            self.num_prefill_tokens += chunk.num_tokens
        else:
            self.num_decode_tokens += 1

    def add(self, step: StepCounts) -> None:
        """Add the counts of a step."""
        self.num_steps += 1
        self.num_decode_tokens += step.num_decode_tokens
        self.num_prefill_tokens += step.num_prefill_tokens
        self.num_cached_tokens += step.num_cached_tokens
        self.num_draft_tokens += step.num_draft_tokens
        self.num_accepted_tokens += step.num_accepted_tokens
        self.num_generated_tokens += step.num_generated_tokens
        self.num_preemptions += step.num_preemptions
        self.num_ahead_steps += step.num_ahead_steps
        self.num_discarded_tokens += step.num_discarded_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class StepStats:
    """One step: the sequences after it, what it did, and its seconds by phase."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    counts: StepCounts
    seconds: dict[Phase, float]

    def as_dict(self) -> dict[str, object]:
        """Return it flat, for a log: all sizes, and ``plan_s``, ``model_s`` ..."""
        flat: dict[str, object] = {
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "num_free_blocks": self.num_free_blocks,
        }
        counts = dataclasses.asdict(self.counts)
        del counts["num_steps"]
        return flat | counts | {f"{phase}_s": round(seconds, 7) for phase, seconds in self.seconds.items()}


class PhaseClock:
    """Measures the phases of one step, and names them in a profiler's trace if one is running."""

    def __init__(self, *, traced: bool) -> None:
        self._traced = traced
        self.seconds: dict[Phase, float] = dict.fromkeys(Phase, 0.0)

    def measure(self, phase: Phase) -> _Measurement:
        """Count the time of a ``with`` block to ``phase``."""
        return _Measurement(self.seconds, phase, record_function(phase) if self._traced else None)


class _Measurement:
    """A class of its own, for there are five in a step: a generator and what it enters take three times as long."""

    __slots__ = ("_phase", "_recorded", "_seconds", "_start_s")

    def __init__(self, seconds: dict[Phase, float], phase: Phase, recorded: record_function | None) -> None:
        self._seconds = seconds
        self._phase = phase
        self._recorded = recorded

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()
        if self._recorded is not None:
            self._recorded.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorded is not None:
            self._recorded.__exit__(kind, error, trace)
        self._seconds[self._phase] += time.perf_counter() - self._start_s
