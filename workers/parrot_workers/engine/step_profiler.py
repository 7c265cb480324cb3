"""A switch for torch's profiler: a trace of some busy steps, to be opened in a trace viewer (Perfetto)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from parrot_mq.errors import ConfigError

NUM_WARMUP_STEPS = 5
NUM_STEPS = 50


class StepProfiler:
    """Records ``num_steps`` steps after ``num_warmup`` others and writes ``steps-<pid>.json`` into ``folder``, once.

    Raises ConfigError if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, num_warmup: int = NUM_WARMUP_STEPS, num_steps: int = NUM_STEPS) -> None:
        self.path = Path(folder) / f"steps-{os.getpid()}.json"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the profile folder {str(folder)!r} cannot be made: {error.strerror}") from error
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=num_warmup, active=num_steps, repeat=1),
            on_trace_ready=lambda finished: finished.export_chrome_trace(str(self.path)),
        )
        self._left = num_warmup + num_steps
        self._profile.start()

    @property
    def is_recording(self) -> bool:
        """Whether steps still go into the trace."""
        return self._left > 0

    def step(self) -> None:
        """Say that a step is over; the last one writes the trace."""
        if self._left:
            self._left -= 1
            self._profile.step()
            if not self._left:
                self._profile.stop()

    def close(self) -> None:
        """Write what there is. Idempotent."""
        if self._left:
            self._left = 0
            self._profile.stop()
