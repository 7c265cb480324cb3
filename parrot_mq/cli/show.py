"""``parrot-mq show``: sessions, calls, variables and engines as they stand in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from rich.console import RenderableType

from parrot_mq.cli.console import RedisUrl, existing_redis, out
from parrot_mq.cli.views import call_view, engines_view, session_view, sessions_view, variable_view
from parrot_mq.store import Store, connect

app = typer.Typer(help="Show what stands in Redis.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID")]


def _show(redis_url: str | None, view: Callable[[Store], Awaitable[RenderableType]]) -> None:
    async def run() -> None:
        async with await connect(existing_redis(redis_url)) as store:
            out().print(await view(store))

    asyncio.run(run())


@app.command("session")
def session(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="Without it: all sessions.")] = "",
    redis_url: RedisUrl = None,
) -> None:
    """Show a session with its requests, or list all sessions."""
    _show(redis_url, (lambda store: session_view(store, session_id)) if session_id else sessions_view)


@app.command("call")
def call(call_id: Id, redis_url: RedisUrl = None) -> None:
    """Show a call: its requests, one for each output."""
    _show(redis_url, lambda store: call_view(store, call_id))


@app.command("var")
def var(variable_id: Id, redis_url: RedisUrl = None) -> None:
    """Show a variable: its value or error, who produces it and who waits for it."""
    _show(redis_url, lambda store: variable_view(store, variable_id))


@app.command("engines")
def engines(redis_url: RedisUrl = None) -> None:
    """Show the engines and what they do."""
    _show(redis_url, engines_view)
