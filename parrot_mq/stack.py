"""The processes of one deployment on one machine: a scheduler and engines, kept running beside a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from parrot_mq.errors import ParrotError
from parrot_mq.groups import only
from parrot_mq.keys import LEADER
from parrot_mq.messages import EngineState
from parrot_mq.process import Child, ChildState, Restarts
from parrot_mq.settings import SchedulerSettings, WorkerSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.reader import engines as read_engines
from parrot_mq.store.server import URL_VARIABLE

READY_TIMEOUT_S = 300.0
"""Loading a large model from a slow disk takes minutes."""
ENDING_S = 30.0
"""What a process may need to end beside its draining: it says goodbye in several steps, to a Redis that may be away."""
_POLL_S = 0.1


class NotReady(ParrotError):
    """A process of the stack did not become ready in time; the message holds its last line."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine to start: its kind (torch, sim), its model (empty: the demo's own), more arguments of its command."""

    kind: str = "torch"
    model: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line of the engine's process."""
        model = ["--model", self.model] if self.model else []
        return [sys.executable, "-m", "parrot_workers", "--engine", self.kind, *model, *self.arguments]


SCHEDULER = [sys.executable, "-m", "parrot_mq.scheduler"]
"""The command line of a scheduler's process."""


async def leader(store: Store) -> str:
    """Return the id of the scheduler that leads, empty if none does."""
    found: str | None = await store.partitions[0].robust(lambda: store.client.get(LEADER))
    return found or ""


class Stack:
    """The running processes; made by ``run_stack``."""

    def __init__(self, url: str, store: Store, children: Sequence[Child]) -> None:
        self.url = url
        self.children = tuple(children)
        self._store = store

    async def ready_children(self) -> set[str]:
        """Return the names of the children that are ready: a scheduler leads, an engine takes work."""
        ready_pids = {
            record.pid
            for record in (await read_engines(self._store)).values()
            if record is not None and record.state is EngineState.READY
        }
        leads = await leader(self._store)
        return {
            child.name
            for child in self.children
            if child.pid in ready_pids or (child.name == "scheduler" and leads and child.pid is not None)
        }

    async def wait_until_ready(
        self, timeout_s: float = READY_TIMEOUT_S, on_ready: Callable[[str], None] = lambda name: None
    ) -> None:
        """Wait until every child is ready, telling ``on_ready`` about each; ``NotReady`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        told: set[str] = set()
        while True:
            ready = await self.ready_children()
            for name in sorted(ready - told):
                on_ready(name)
            told |= ready
            late = [child for child in self.children if child.name not in ready]
            if not late:
                return
            if time.monotonic() > deadline:
                last = next((line for line in reversed(late[0].last_lines) if line), "it printed nothing")
                raise NotReady(f"{late[0].name} was not ready within {timeout_s:g} s; its last line: {last}")
            await asyncio.sleep(_POLL_S)

    def hurry(self) -> None:
        """Have engines that drain give back what they run, instead of finishing it."""
        for child in self.children:
            child.terminate()

    def kill(self) -> None:
        """End every process at once; what engines run is given to others when its lease has run out."""
        for child in self.children:
            child.kill()


@contextlib.asynccontextmanager
async def run_stack(
    url: str,
    engines: Sequence[EngineChoice],
    *,
    scheduler: bool = True,
    environment: Mapping[str, str] | None = None,
    restarts: Restarts | None = None,
    on_line: Callable[[str, str], None] = lambda name, line: None,
    on_state: Callable[[str, ChildState, str], None] = lambda name, state, detail: None,
) -> AsyncIterator[Stack]:
    """Run a scheduler and ``engines`` on the Redis at ``url`` for as long as the block lasts, then drain and stop them.

    ``environment`` is added to that of every process, for settings that are not our own. Crashed processes come back
    after a back-off. When one ends for good the block is cancelled, and its ``ChildFailed`` is raised. At the end
    processes get the time to drain that their settings give them.
    """

    def child(name: str, command: Sequence[str], drain_timeout_s: float) -> Child:
        return Child(
            name,
            command,
            # Not an argument: those are everybody's to read, and the URL holds a password.
            environment={**(environment or {}), URL_VARIABLE: url},
            restarts=restarts,
            stop_timeout_s=drain_timeout_s + ENDING_S,
            on_line=on_line,
            on_state=on_state,
        )

    children = [child("scheduler", SCHEDULER, SchedulerSettings.from_env().drain_timeout_s)] if scheduler else []
    for number, choice in enumerate(engines, 1):
        children.append(child(f"engine-{number}", choice.command, WorkerSettings.from_env().drain_timeout_s))
    async with await connect(url) as store:
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(child.run(), name=child.name) for child in children]
                yield Stack(url, store, children)
                for task in running:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
