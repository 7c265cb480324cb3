"""What owns an engine: it alone makes, steps and closes it. A thread does so here, a simulation has a task for it."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from parrot_mq.messages import ObjectiveKind
from parrot_workers.engine.port import (
    EnginePort,
    EngineSpec,
    EngineStats,
    PromptSegment,
    SequenceInput,
    SequenceOutput,
    TakesHints,
)

MAX_UNREAD_EVENTS = 64
"""Steps whose outputs the event loop has not taken yet; at this many the engine waits for it."""
POLL_S = 1.0
"""How often a waiting thread looks whether it should end."""


@runtime_checkable
class Reprioritises(Protocol):
    """What an engine may offer beyond its port: another objective for a sequence it has."""

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        """Change the objective of a sequence; unknown ids are ignored."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """The engine is ready for sequences."""

    spec: EngineSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Stepped:
    """What one step changed."""

    outputs: list[SequenceOutput]


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not be made, or raised out of ``step``: it runs nothing any more."""

    error: Exception


Event = Loaded | Stepped | Failed
Command = Callable[[EnginePort], None]


class Stepper(abc.ABC):
    """Takes commands to an engine and runs it, somewhere.

    ``stats`` is the engine's newest snapshot, None before the first step; read from any thread. Whoever handles an
    event calls ``taken``.
    """

    def __init__(self) -> None:
        self.stats: EngineStats | None = None
        self.takes_hints = False
        """Whether hints come to anything with this engine; known once it is loaded."""

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to build the engine."""

    @abc.abstractmethod
    def taken(self) -> None:
        """Say that an event has been handled."""

    @abc.abstractmethod
    async def end(self, timeout_s: float) -> bool:
        """End after the current step and close the engine; False if that takes longer than ``timeout_s``."""

    @abc.abstractmethod
    def _put(self, command: Command) -> None:
        """Have ``command`` carried out before the engine's next step."""

    def add(self, sequence: SequenceInput) -> None:
        """Queue a sequence in the engine, before its next step."""
        self._put(lambda engine: engine.add(sequence))

    def abort(self, sequence_id: str) -> None:
        """End a sequence before the engine's next step."""
        self._put(lambda engine: engine.abort(sequence_id))

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        """Pass another objective on, if the engine can use it."""

        def run(engine: EnginePort) -> None:
            if isinstance(engine, Reprioritises):
                engine.set_objective(sequence_id, objective)

        self._put(run)

    def prefill(self, sequence: SequenceInput) -> None:
        """Pass on that a prompt is worth computing ahead, if the engine can use it."""
        self._hint(lambda engine: engine.prefill(sequence))

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        """Pass on that a prefix is worth keeping, if the engine can use it; ``until_s`` as ``monotonic_s`` counts."""
        self._hint(lambda engine: engine.retain(key, segments, salt, until_s))

    def release(self, key: str) -> None:
        """Pass on that nothing more need be kept for ``key``."""
        self._hint(lambda engine: engine.release(key))

    def _hint(self, give: Callable[[TakesHints], None]) -> None:
        def run(engine: EnginePort) -> None:
            if isinstance(engine, TakesHints):
                give(engine)

        self._put(run)


class StepThread(Stepper):
    """Runs an engine in a thread of its own.

    ``make`` builds it there (loading weights may take minutes). ``deliver`` is called in this thread with each event
    and must hand it on without waiting; an engine that is ``MAX_UNREAD_EVENTS`` ahead of those who take them waits.
    Commands need no bound of their own: there are at most one ``add`` and one ``abort`` for each claim, and claims are
    bounded by the engine's capacity; hints come from the scheduler alone, and are done with before the next step.
    """

    def __init__(self, make: Callable[[], EnginePort], deliver: Callable[[Event], None]) -> None:
        super().__init__()
        self._make = make
        self._deliver = deliver
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._unread = threading.Semaphore(MAX_UNREAD_EVENTS)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._main, name="engine-step", daemon=True)

    def start(self) -> None:
        """Begin to build the engine."""
        self._thread.start()

    def taken(self) -> None:
        """Say that an event has been handled."""
        self._unread.release()

    async def end(self, timeout_s: float) -> bool:
        """``close``, without holding the event loop up."""
        return await asyncio.to_thread(self.close, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """End the thread after its current step and close the engine; False if that takes longer than ``timeout_s``."""
        self._closing.set()
        self._commands.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, command: Command) -> None:
        self._commands.put(command)

    def _main(self) -> None:
        try:
            engine = self._make()
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: whatever it is, the process must hear of it
            self._post(Failed(error))
            return
        try:
            with contextlib.closing(engine):
                self.takes_hints = isinstance(engine, TakesHints)
                self._post(Loaded(engine.spec))
                while self._obey(engine):
                    outputs = engine.step()
                    self.stats = engine.stats()
                    if outputs:
                        self._post(Stepped(outputs))
        except Exception as error:  # noqa: BLE001 - likewise: the requests must be given back
            self._post(Failed(error))

    def _obey(self, engine: EnginePort) -> bool:
        """Apply all commands, waiting for one while there is nothing to do; False: end.

        An engine that stays idle is checked once: one whose books are wrong must not answer anything more.
        """
        is_checked = False
        while not self._closing.is_set():
            try:
                if engine.has_work():
                    command = self._commands.get_nowait()
                else:
                    self.stats = engine.stats()
                    command = self._commands.get(timeout=POLL_S)
            except queue.Empty:
                if engine.has_work():
                    return True
                if not is_checked:
                    engine.check()
                    is_checked = True
                continue
            if command is not None:
                command(engine)
        return False

    def _post(self, event: Event) -> None:
        while not self._unread.acquire(timeout=POLL_S):
            if self._closing.is_set():
                return
        self._deliver(event)


def monotonic_s() -> float:
    """Return the time in seconds that queue and run times are measured in."""
    return time.monotonic()
