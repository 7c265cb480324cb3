"""What a step did and where its time went."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
from collections.abc import Iterator

from torch.profiler import record_function


class Phase(enum.StrEnum):
    """The parts of a step, in order."""

    PLAN = "plan"
    """Choose what runs, allot blocks, look up drafts."""
    MODEL = "model"
    """Build the batch and compute the logits."""
    SAMPLE = "sample"
    POSTPROCESS = "postprocess"
    """Verify drafts, detokenise, look for stops."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepStats:
    """One step: sizes of its batch and seconds by phase.

    ``num_decode_tokens`` counts sequences that had one token to compute, ``num_prefill_tokens`` the tokens of all
    others. ``num_cached_tokens`` are prompt tokens that this step found in the prefix cache.
    """

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_decode_tokens: int
    num_prefill_tokens: int
    num_cached_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    seconds: dict[Phase, float]

    def as_dict(self) -> dict[str, object]:
        """Return it flat, for a log: ``plan_s``, ``model_s`` ... beside the sizes."""
        flat: dict[str, object] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "seconds"
        }
        return flat | {f"{phase}_s": round(seconds, 7) for phase, seconds in self.seconds.items()}


class PhaseClock:
    """Measures the phases of one step, and names them in a profiler's trace if one is running."""

    def __init__(self, *, traced: bool) -> None:
        self._traced = traced
        self.seconds: dict[Phase, float] = dict.fromkeys(Phase, 0.0)

    @contextlib.contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Count the time of the block to ``phase``."""
        start = time.perf_counter()
        try:
            with record_function(phase) if self._traced else contextlib.nullcontext():
                yield
        finally:
            self.seconds[phase] += time.perf_counter() - start
