"""Assignments that have a slot of the engine and are being claimed."""

from __future__ import annotations

import dataclasses

from parrot_mq.store.records import Control
from parrot_workers.worker.backlog import Waiting
from parrot_workers.worker.run import Run


@dataclasses.dataclass(slots=True, eq=False)
class Admitted:
    """An assignment between its slot and the answer to its claim; ``run`` if it has begun, messages if it has not."""

    waiting: Waiting
    run: Run | None = None
    controls: list[Control] = dataclasses.field(default_factory=list)

    def answered(self) -> None:
        """Let the outcome of the run be written (or not, if it was dropped)."""
        if self.run is not None and self.run.answered is not None and not self.run.answered.done():
            self.run.answered.set_result(None)
