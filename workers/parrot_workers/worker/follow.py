"""A value that is followed while it is generated."""

from __future__ import annotations

import asyncio
import dataclasses

from parrot_mq.store.partition import Partition
from parrot_workers.engine.port import PromptSegment
from parrot_workers.worker.stepper import monotonic_s


@dataclasses.dataclass(slots=True, eq=False)
class Follow:
    """One value that is followed for one reader: ``prefix`` is the reader's prompt up to the value, maybe empty."""

    key: str
    variable: str
    partition: Partition
    prefix: tuple[PromptSegment, ...]
    salt: str
    deadline_s: float
    ended: bool = False
    fresh: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Something happened: tokens came, their run has ended or begun, the engine has done what it was given."""
    outstanding: str = ""
    """The prefill that the engine has not done yet."""
    num_sent: int = 0
    """Tokens of the value in the newest prefill."""

    @property
    def is_over(self) -> bool:
        """Whether it is to end."""
        return self.ended or monotonic_s() > self.deadline_s
