"""How the demo looks in a terminal: progress while it runs, the notes, and the table of times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from parrot_mq.demo.monitor import POLL_S, StageProgress
from parrot_mq.demo.run import BUILDERS, TITLES, Document, Result, Timed


class TimeLeft(TimeRemainingColumn):
    """The time that a stage still needs; nothing once it is done."""

    def render(self, task: Task) -> Text:
        """Render the column's cell of a stage."""
        return Text("") if task.finished else Text("left ") + super().render(task)


class LiveProgress:
    """Shows a run on ``console``: a bar for each stage, tokens per second, the time that is left.

    The bars of an application stay when the next one begins.
    """

    def __init__(self, console: Console, now_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:>14}"),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            get_time=now_s,
        )
        self._tasks: dict[str, TaskID] = {}
        self._num_begun = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, title: str, stages: Sequence[StageProgress]) -> None:
        """Show the stages of an application that starts."""
        self._num_begun += 1
        self._progress.console.print(f"\n[bold]{self._num_begun} of {2 * len(BUILDERS)}: {escape(title)}[/]")
        self._tasks = {
            stage.name: self._progress.add_task(stage.name, total=stage.total, start=False, speed="")
            for stage in stages
        }

    def progress(self, stages: Sequence[StageProgress]) -> None:
        """Move the bars. A stage begins when the one before is done, or with its own first answer."""
        runs = True
        for stage in stages:
            task = self._progress.tasks[self._progress.task_ids.index(self._tasks[stage.name])]
            if (runs or stage.num_done) and not task.started:
                self._progress.start_task(task.id)
            if stage.num_done > task.completed:
                elapsed_s = task.elapsed or 0.0
                speed = f"{stage.num_tokens / elapsed_s:,.0f} tokens/s" if elapsed_s > POLL_S else ""
                self._progress.update(task.id, completed=stage.num_done, speed=speed)
            runs = stage.num_done == stage.total

    def end(self, timed: Timed) -> None:
        """Leave the application's bars, and how long it took."""
        bars = self._progress.make_tasks_table(self._progress.tasks)
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._progress.refresh()
        self._progress.console.print(bars)
        self._progress.console.print(f"  done in [bold]{timed.elapsed_s:.1f} s[/]")


def print_result(console: Console, document: Document, result: Result) -> None:
    """Print the notes of each application, whether they are right, and the times beside the client's."""
    console.print(f"\n{escape(document.title)}: {len(document.chunks)} chunks, {result.num_tokens:,} tokens")
    for name, timed in result.service.items():
        title = f"notes by {TITLES[name]}"
        console.print(Panel.fit(escape(timed.notes), title=title, subtitle=_verdict(result, timed)))
    if result.correct is False:
        console.print(Panel.fit(escape(result.expected or ""), title="notes to expect", style="dim"))
    console.print(times_table(result))
    console.print(
        "Driven by a client: the same prompts on the same engine, one request a call, each over a network round trip "
        "of 218 to 345 ms, half each way. Through the service: one round trip for the whole application.",
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
