"""How the demo looks in a terminal: progress while it runs, the notes, and the table of times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from parrot_mq.demo.monitor import StageProgress
from parrot_mq.demo.run import Document, Result, Timed

TITLES = {"map_reduce": "map-reduce", "chain": "chain"}


class LiveProgress:
    """Shows a run on ``console``: a bar for each stage, tokens per second, the time that is left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>14}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._title = ""
        self._began_s = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, title: str, stages: Sequence[StageProgress]) -> None:
        """Show the stages of an application that starts."""
        self._title, self._began_s = title, time.monotonic()
        self._progress.console.print(f"[bold]{escape(title)}[/]")
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks = {stage.name: self._progress.add_task(stage.name, total=stage.total, speed="") for stage in stages}

    def progress(self, stages: Sequence[StageProgress]) -> None:
        """Move the bars."""
        elapsed_s = time.monotonic() - self._began_s
        for stage in stages:
            speed = f"{stage.num_tokens / elapsed_s:,.0f} tokens/s" if stage.num_done and elapsed_s > 0 else ""
            task = self._tasks[stage.name]
            if stage.num_done > self._progress.tasks[self._progress.task_ids.index(task)].completed:
                self._progress.update(task, completed=stage.num_done, speed=speed)

    def end(self, timed: Timed) -> None:
        """Leave one line about the application."""
        self._progress.refresh()
        self._progress.console.print(f"  done in [bold]{timed.elapsed_s:.1f} s[/]")


def print_result(console: Console, document: Document, result: Result) -> None:
    """Print the notes of each application, whether they are right, and the times beside the client's."""
    console.print(f"\n{escape(document.title)}: {len(document.chunks)} chunks, {result.num_tokens:,} tokens")
    for name, timed in result.service.items():
        title = f"notes by {TITLES[name]}"
        console.print(Panel.fit(escape(timed.notes), title=title, subtitle=_verdict(result, timed)))
    console.print(times_table(result))
    console.print(
        "The client-driven way: the same prompts on the same engine, one request a call, each over a network round trip"
        "\nof 218 to 345 ms, half each way; through the service one round trip for the whole application.",
        style="dim",
    )


def _verdict(result: Result, timed: Timed) -> str | None:
    if result.expected is None:
        return None
    return "[green]exactly as expected[/]" if timed.notes == result.expected else "[bold red]not as expected[/]"


def times_table(result: Result) -> Table:
    """Return the table of end-to-end times."""
    table = Table(title="end-to-end time", title_justify="left")
    for column in ("application", "through the service", "driven by a client", "ratio"):
        table.add_column(column, justify="left" if column == "application" else "right")
    for name, timed in result.service.items():
        _add_times(table, TITLES[name], timed.elapsed_s, result.client[name].elapsed_s)
    table.add_section()
    _add_times(table, "together", result.pipeline_s, result.client_side_s)
    return table


def _add_times(table: Table, title: str, service_s: float, client_s: float) -> None:
    table.add_row(title, f"{service_s:.1f} s", f"{client_s:.1f} s", f"{client_s / service_s:.2f} x")
