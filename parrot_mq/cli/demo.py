"""``parrot-mq demo``: the notes of a long meeting through the whole pipeline, beside a client that drives it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from parrot_mq.cli.console import EngineKind, RedisUrl, err, out, require
from parrot_mq.demo.report import LiveProgress, print_result
from parrot_mq.demo.run import Document, Result, run_demo
from parrot_mq.messages import EngineState
from parrot_mq.model_name import model_name
from parrot_mq.process import Restarts
from parrot_mq.stack import READY_TIMEOUT_S, EngineChoice, leader, run_stack
from parrot_mq.store import connect
from parrot_mq.store.address import masked
from parrot_mq.store.reader import engines as read_engines
from parrot_mq.store.resolve import resolve_redis
from parrot_mq.store.server import known_url

RESTARTS = Restarts(limit=2)
"""A demo that cannot start says so instead of trying for ever."""


def demo(
    redis_url: RedisUrl = None,
    seed: Annotated[int, typer.Option(min=0, help="Which meeting; training used none of them.")] = 0,
    document: Annotated[Path | None, typer.Option(help="A text file to take notes of, in place of a meeting.")] = None,
    model: Annotated[str, typer.Option(help="Model folder or id; without it, the small one made for this.")] = "",
    engine: Annotated[EngineKind, typer.Option(help="Kind of the engine, where one is started.")] = EngineKind.TORCH,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Take notes of a long meeting, by map-reduce and as a chain, and time a client that does the same.

    Uses the scheduler and the engine that run on the Redis in use, and starts what is missing.
    """
    source = Document.of_file(document) if document is not None else Document.of_seed(seed)
    result = asyncio.run(_demo(redis_url, source, model, engine, seed, err()))
    if json:
        out().print(orjson.dumps(result.to_json()).decode(), markup=False, soft_wrap=True)
    else:
        print_result(out(), source, result)


async def _demo(
    redis_url: str | None, document: Document, model: str, kind: EngineKind, seed: int, console: Console
) -> Result:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # stop what was started, as Ctrl-C does
    async with _redis(redis_url) as url, _service(url, model, kind, console) as name:
        with LiveProgress(console) as progress:
            return await run_demo(url, document, model=name, seed=seed, audience=progress)


@contextlib.asynccontextmanager
async def _redis(url: str | None) -> AsyncIterator[str]:
    """A Redis: the one that is known, else a private one that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="parrot-mq-demo-") as folder:
        async with resolve_redis(known_url(url), folder) as address:
            yield address


@contextlib.asynccontextmanager
async def _service(url: str, model: str, kind: EngineKind, console: Console) -> AsyncIterator[str]:
    """Start what is missing: a scheduler, an engine with the model. Gives the name that requests call the model."""
    async with await connect(url) as store:
        has_scheduler = bool(await leader(store))
        records = [record for record in (await read_engines(store)).values() if record]
    name = model_name(model)
    ready = any(record.state is EngineState.READY and name in ("", record.model) for record in records)
    if not ready and kind is EngineKind.TORCH:
        require("torch", "worker")
    missing = [word for word, there in (("a scheduler", has_scheduler), ("an engine", ready)) if not there]
    console.print(f"[dim]redis {masked(url)}; starting {' and '.join(missing) or 'nothing: all is running'}[/]")
    engines = [] if ready else [EngineChoice(kind, model)]
    async with run_stack(url, engines, scheduler=not has_scheduler, restarts=RESTARTS) as stack:
        with console.status(f"waiting for {' and '.join(missing)}") if missing else contextlib.nullcontext():
            await stack.wait_until_ready(READY_TIMEOUT_S, lambda child: console.print(f"[dim]{child} ready[/]"))
        yield name
