"""Reading the results of a peer's jobs when there are many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

PART = 500
PAUSE_S = 0.01
PATIENCE_S = 30.0
"""Without any new result for this long, jobs count as lost."""


async def all_read(mget: Callable[[Sequence[str]], Awaitable[Sequence[Any]]], keys: Sequence[str]) -> None:
    """Read the results at ``keys`` as they come, several hundred in a command.

    Ten thousand waiters that poll would slow a peer down unfairly. Raises ``RuntimeError`` if jobs were lost.
    """
    missing, deadline = list(keys), time.monotonic() + PATIENCE_S
    while missing:
        part, rest = missing[:PART], missing[PART:]
        left = [key for key, found in zip(part, await mget(part), strict=True) if found is None]
        if len(left) < len(part):
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            raise RuntimeError(f"{len(missing)} of {len(keys)} jobs have no result: they were lost")
        missing = left + rest
        if left:
            await asyncio.sleep(PAUSE_S)
