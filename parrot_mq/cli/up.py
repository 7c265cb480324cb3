"""``parrot-mq up``: a Redis if needed, a scheduler and engines in one terminal, until Ctrl-C."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from typing import Annotated, Self

import typer
from rich.markup import escape

from parrot_mq.cli.console import EngineKind, RedisUrl, err, require
from parrot_mq.entry import LOG_LINE
from parrot_mq.process import ChildState
from parrot_mq.stack import READY_TIMEOUT_S, EngineChoice, Stack, run_stack
from parrot_mq.store.address import masked
from parrot_mq.store.resolve import resolve_redis
from parrot_mq.store.server import URL_VARIABLE

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COLOURS = ("cyan", "magenta", "green", "blue", "yellow")
_LEVEL_STYLES = {"D": "dim", "W": "yellow", "E": "bold red", "C": "bold red"}
_STYLES = {ChildState.CRASHED: "bold yellow", ChildState.STOPPED: "bold red"}


def up(
    redis_url: RedisUrl = None,
    model: Annotated[
        str, typer.Option(help="Model folder or id for the engines; without it, the small demo model.")
    ] = "",
    engine: Annotated[
        EngineKind, typer.Option(help="Kind of the engines; sim needs no model and answers nonsense, for trying out.")
    ] = EngineKind.TORCH,
    engines: Annotated[int, typer.Option(min=1, help="How many engines.")] = 1,
    ready_timeout_s: Annotated[float, typer.Option(help="Seconds that loading may take.")] = READY_TIMEOUT_S,
) -> None:
    """Start Redis (unless there is one), a scheduler and engines here, until Ctrl-C.

    The first Ctrl-C lets engines finish what they run, the second one has them give it back, the third one kills.
    """
    if engine is EngineKind.TORCH:
        require("torch", "worker")
    asyncio.run(_up(redis_url, [EngineChoice(engine, model)] * engines, ready_timeout_s))


class Terminal:
    """What the processes say: when, the process' name in a colour of its own, the line."""

    def __init__(self) -> None:
        self._console = err()
        self._colours: dict[str, str] = {}

    def line(self, name: str, text: str, style: str = "") -> None:
        """Print a line of a process; of a line of a log only what is said, for time and name are shown already."""
        time_of_day = time.strftime("%H:%M:%S")
        if log := LOG_LINE.match(text):
            time_of_day, text = log["time"], log["message"]
            style = style or _LEVEL_STYLES.get(log["level"], "")
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        body = f"[{style}]{escape(text)}[/]" if style else escape(text)
        self._console.print(f"[dim]{time_of_day}[/] [{colour}]{name:>9}[/]  {body}", soft_wrap=True)

    def plain(self, text: str) -> None:
        """Print a line of its own, to be copied."""
        self._console.print(escape(text), style="bold", soft_wrap=True)

    def state(self, name: str, state: ChildState, detail: str) -> None:
        """Print a change in a process' life."""
        if state is not ChildState.STARTING:
            self.line(name, f"{state.value}: {detail}" if detail else state.value, _STYLES.get(state, "dim"))

    def ready(self, name: str) -> None:
        """Print that a process is ready."""
        self.line(name, "ready", "bold green")


class Interrupts:
    """Ctrl-C and SIGTERM: the first one sets ``stop``, the second one hurries ``stack``, further ones kill it."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stack: Stack | None = None
        self._hurried = False

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _interrupted(self) -> None:
        if self.stop.is_set() and self.stack is not None:
            (self.stack.kill if self._hurried else self.stack.hurry)()
            self._hurried = True
        self.stop.set()


async def _up(redis_url: str | None, engines: list[EngineChoice], ready_timeout_s: float) -> None:
    terminal = Terminal()
    with Interrupts() as interrupts:
        async with (
            resolve_redis(redis_url, on_event=functools.partial(terminal.line, "redis")) as url,
            run_stack(url, engines, on_line=terminal.line, on_state=terminal.state) as stack,
        ):
            interrupts.stack = stack
            await _serve(stack, interrupts.stop, terminal, ready_timeout_s)
    terminal.line("up", "everything has stopped", "dim")


async def _serve(stack: Stack, stop: asyncio.Event, terminal: Terminal, ready_timeout_s: float) -> None:
    """Wait for the stack to be ready, then for ``stop``; either may come first."""
    async with asyncio.TaskGroup() as tasks:
        getting_ready = tasks.create_task(stack.wait_until_ready(ready_timeout_s, terminal.ready))
        stopping = tasks.create_task(stop.wait())
        await asyncio.wait([getting_ready, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await getting_ready
            terminal.line("up", "all ready (Ctrl-C stops); in the terminals of your programs:", "bold")
            terminal.plain(f"\n    export {URL_VARIABLE}={masked(stack.url)}\n")
            await stopping
        getting_ready.cancel()
        terminal.plain("")  # what the terminal shows of Ctrl-C stands in this line
        terminal.line("up", "stopping: engines finish what they run (Ctrl-C again: they give it back)")
