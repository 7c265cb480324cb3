"""Who waits for what, for people: the innermost awaits of tasks."""

from __future__ import annotations

import asyncio
from typing import Any

MAX_TASKS = 12


def what_waits(main: asyncio.Task[Any] | None) -> str:
    """Return lines that say where ``main`` and the tasks beside it are; empty if there is nothing to say."""
    if main is None:
        return ""
    tasks = sorted((task for task in asyncio.all_tasks(main.get_loop()) if task is not main), key=hash)
    lines = [f"  {task.get_name()}: {_where(task)}" for task in (main, *tasks[:MAX_TASKS])]
    if len(tasks) > MAX_TASKS:
        lines.append(f"  and {len(tasks) - MAX_TASKS} more tasks")
    return "; what waits:\n" + "\n".join(lines)


def _where(task: asyncio.Task[Any]) -> str:
    """Return the functions that ``task`` is in, outermost first, each with the line that it waits in."""
    names: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            names.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return " > ".join(names) or repr(task)
