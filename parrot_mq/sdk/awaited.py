"""A variable that is waited for, and who waits."""

from __future__ import annotations

import time
from typing import Protocol

from parrot_mq.errors import ParrotError
from parrot_mq.messages import Objective
from parrot_mq.store.records import Outcome


class Listener(Protocol):
    """Who waits for variables."""

    def arrived(self, variable_id: str, outcome: Outcome | ParrotError | None) -> None:
        """Take the resolved variable (ready or error); None: nobody has made it; or why the wait could not go on."""


class Awaited:
    """What a hub knows of a variable that is waited for."""

    __slots__ = (
        "channel",
        "checked_at",
        "grace_s",
        "is_expected",
        "is_told",
        "listeners",
        "missing_since",
        "objective",
    )

    def __init__(self, channel: str, grace_s: float) -> None:
        self.channel = channel
        self.grace_s = grace_s
        self.is_expected = False
        """Whether its submit is under way, so that Redis may not know it yet."""
        self.is_told = False
        """Whether every change of it since it was made is told on ``channel``."""
        self.listeners: dict[Listener, None] = {}
        self.objective: Objective | None = None
        self.checked_at = time.monotonic()
        self.missing_since: float | None = None
