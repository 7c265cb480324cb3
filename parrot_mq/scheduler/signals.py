"""Waiting in the shell's loops: bounded, and ended by a stop."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes one loop that waits for something to do. Rings that come while it works are not lost."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the loop."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until somebody rings, at most ``timeout_s``."""
        await wait_for(self._event, timeout_s)
        self._event.clear()


async def wait_for(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until ``event`` is set, at most ``timeout_s``; returns whether it is."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
