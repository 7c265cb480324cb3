"""An engine as a task: a step's outputs come when the virtual time that the step costs has passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from parrot_workers.engine.port import EnginePort, TakesHints
from parrot_workers.sim import StepClock
from parrot_workers.worker.stepper import MAX_UNREAD_EVENTS, Command, Event, Failed, Loaded, Stepped, Stepper


class StepTask(Stepper):
    """What ``StepThread`` is, on the event loop of a simulation.

    ``clock`` is the engine's: a step puts its cost on it, which is then slept. Commands that come meanwhile wait for
    the next step. ``deliver`` and ``make`` as there.
    """

    def __init__(self, make: Callable[[], EnginePort], deliver: Callable[[Event], None], clock: StepClock) -> None:
        super().__init__()
        self._make = make
        self._deliver = deliver
        self._clock = clock
        self._commands: deque[Command] = deque()
        self._bell = asyncio.Event()
        self._unread = asyncio.Semaphore(MAX_UNREAD_EVENTS)
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to build the engine."""
        self._task = asyncio.get_running_loop().create_task(self._main(), name="engine-step")

    def taken(self) -> None:
        """Say that an event has been handled."""
        self._unread.release()

    async def end(self, timeout_s: float) -> bool:
        """End after the current step and close the engine; False if that takes longer than ``timeout_s``."""
        self._closing = True
        self._bell.set()
        if self._task is None:
            return True
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        return bool(done)

    def kill(self) -> None:
        """End in the middle of a step, as a process that is killed: nobody hears of it."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    def _put(self, command: Command) -> None:
        self._commands.append(command)
        self._bell.set()

    async def _main(self) -> None:
        try:
            with contextlib.closing(self._make()) as engine:
                self.takes_hints = isinstance(engine, TakesHints)
                await self._post(Loaded(engine.spec))
                while await self._obey(engine):
                    outputs = engine.step()
                    await asyncio.sleep(self._clock.take_ms() / 1000)
                    self.stats = engine.stats()
                    if outputs:
                        await self._post(Stepped(outputs))
        except Exception as error:  # noqa: BLE001 - the task's outermost frame: the requests must be given back
            await self._post(Failed(error))

    async def _obey(self, engine: EnginePort) -> bool:
        """Apply all commands, waiting for one while there is nothing to do; False: end."""
        while not self._closing:
            while self._commands:
                self._commands.popleft()(engine)
            if engine.has_work():
                return True
            self.stats = engine.stats()
            engine.check()
            self._bell.clear()
            await self._bell.wait()
        return False

    async def _post(self, event: Event) -> None:
        await self._unread.acquire()
        self._deliver(event)
