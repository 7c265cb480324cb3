"""``parrot-mq show``: sessions, calls, variables and engines as they stand in Redis."""

from __future__ import annotations

import asyncio
import graphlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import orjson
import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from parrot_mq.cli.console import RedisUrl, existing_redis, out
from parrot_mq.errors import UnknownSession, UnknownVariable
from parrot_mq.messages import EngineRecord
from parrot_mq.store import Reader, Store, connect
from parrot_mq.store.reader import engines as read_engines
from parrot_mq.store.records import RequestRecord, VariableRecord

app = typer.Typer(help="Show what stands in Redis.", no_args_is_help=True)

_STATE_STYLES = {
    "ready": "green",
    "done": "green",
    "open": "green",
    "running": "cyan",
    "queued": "cyan",
    "error": "bold red",
    "dead": "bold red",
    "no heartbeat": "bold red",
    "cancelled": "yellow",
    "draining": "yellow",
}
_VALUE_CHARS = 60
_VALUES_AT_ONCE = 200

Id = Annotated[str, typer.Argument(metavar="ID")]


def _show(redis_url: str | None, view: Callable[[Store], Awaitable[RenderableType]]) -> None:
    async def run() -> None:
        async with await connect(existing_redis(redis_url)) as store:
            out().print(await view(store))

    asyncio.run(run())


@app.command("session")
def session(
    session_id: Annotated[str, typer.Argument(metavar="[ID]", help="Without it: all sessions.")] = "",
    redis_url: RedisUrl = None,
) -> None:
    """Show a session with its calls, or list all sessions."""
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


async def sessions_view(store: Store) -> Table:
    """Return a table of all sessions."""
    table = _table("sessions", "session", "tenant", "state", "live", "age")
    for partition in store.partitions:
        reader = Reader(partition)
        for session_id in await reader.sessions():
            if record := await reader.session(session_id):
                age = _age(record.created_ms)
                table.add_row(session_id, escape(record.tenant), _state(record.state), str(record.live), age)
    return table


async def session_view(store: Store, session_id: str) -> Table:
    """Return a table of a session's requests, oldest first; ``UnknownSession`` if there is none."""
    reader = Reader(store.of(session_id, "s"))
    record = await reader.session(session_id)
    if record is None:
        raise UnknownSession(f"no session {session_id}; `parrot-mq show session` lists them", session_id)
    requests = await _requests_of(reader, session_id)
    title = f"session {session_id} of {record.tenant or 'no tenant'}: {record.state.value}, {record.live} live"
    return _requests_table(title, requests)


async def call_view(store: Store, call_id: str) -> Table:
    """Return a table of a call's requests; ``UnknownVariable`` if no session has it."""
    reader = Reader(store.of(call_id, "c"))
    for session_id in await reader.sessions():
        requests = [record for record in await _requests_of(reader, session_id) if record.call == call_id]
        if requests:
            return _requests_table(f"call {call_id} in session {session_id}", requests)
    raise UnknownVariable(f"no session has a call {call_id}; `parrot-mq show session ID` lists a session's", call_id)


async def variable_view(store: Store, variable_id: str) -> Table:
    """Return a table of a variable's fields; ``UnknownVariable`` if there is none."""
    reader = Reader(store.of(variable_id, "v"))
    record = await reader.variable(variable_id)
    if record is None:
        raise UnknownVariable(f"no variable {variable_id}; it expired, or never was", variable_id)
    table = Table(title=f"variable {variable_id}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in (await _variable_rows(reader, record)).items():
        if text:
            table.add_row(name, text)
    return table


async def _variable_rows(reader: Reader, record: VariableRecord) -> dict[str, str]:
    producer = await reader.request(record.producer) if record.producer else None
    step = f"{producer.function_name} {producer.id} ({producer.state.value})" if producer else record.producer
    error = record.error
    return {
        "name": escape(record.name),
        "session": record.session,
        "tenant": escape(record.tenant),
        "state": _state(record.state),
        "value": escape(record.value) if record.value is not None else "",
        "error": escape(f"{error.kind}: {error.message}") if error else "",
        "producer": escape(step),
        "waiting for it": " ".join(await reader.waiters(record.id)),
        "objective": record.objective.kind.value if record.objective else "",
        "size": f"{record.size_bytes} bytes" if record.value is not None else "",
        "tokens": f"{len(record.token_ids)} of {record.tokens_by}" if record.token_ids else "",
        "age": _age(record.created_ms),
        "took": _span(record.created_ms, record.ready_ms),
    }


async def engines_view(store: Store) -> Table:
    """Return a table of the engines."""
    columns = ("engine", "kind", "model", "state", "running", "waiting", "free blocks", "tokens/s", "host", "age")
    table = _table("engines", *columns)
    for engine_id, record in sorted((await read_engines(store)).items()):
        table.add_row(engine_id, *_engine_cells(record))
    return table


def _engine_cells(record: EngineRecord | None) -> list[str]:
    if record is None:
        return ["", "", _state("no heartbeat")]
    return [
        record.kind,
        escape(record.model),
        _state(record.state),
        f"{record.num_running}/{record.max_num_seqs}",
        str(record.num_waiting),
        f"{record.num_free_blocks}/{record.num_blocks}",
        f"{record.tokens_per_s:.0f}",
        f"{record.host}:{record.pid}",
        _age(record.started_ms),
    ]


async def _requests_of(reader: Reader, session_id: str) -> list[RequestRecord]:
    ids = [object_id for object_id in await reader.session_ids(session_id) if "-r-" in object_id]
    found: list[RequestRecord] = []
    for start in range(0, len(ids), _VALUES_AT_ONCE):
        records = await reader.requests(ids[start : start + _VALUES_AT_ONCE])
        found += [record for record in records if record is not None]
    return in_order(found)


def in_order(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return requests as they were submitted; those of one submit (one millisecond) as they depend on each other."""
    producers = {record.output: record.id for record in requests}
    graph = {record.id: [producers[i] for i in record.inputs if i in producers] for record in requests}
    depth = {request: place for place, request in enumerate(graphlib.TopologicalSorter(graph).static_order())}
    return sorted(requests, key=lambda record: (record.created_ms, depth[record.id]))


def _requests_table(title: str, requests: list[RequestRecord]) -> Table:
    columns = ("function", "state", "call", "output", "engine", "try", "waited", "queued", "ran", "tokens", "error")
    table = _table(title, *columns)
    for record in requests:
        usage = orjson.loads(record.usage_json) if record.usage_json else {}
        prompt, output = usage.get("num_prompt_tokens", 0), usage.get("num_output_tokens", 0)
        table.add_row(
            escape(record.function_name),
            _state(record.state),
            record.call,
            record.output,
            record.engine,
            str(record.attempt),
            _span(record.created_ms, record.ready_ms),
            _span(record.ready_ms, record.started_ms),
            _span(record.started_ms, record.done_ms),
            f"{prompt} + {output}" if usage else "",
            escape(f"{record.error.kind}: {record.error.message}"[:_VALUE_CHARS]) if record.error else "",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _state(state: str) -> str:
    style = _STATE_STYLES.get(str(state))
    return f"[{style}]{state}[/]" if style else str(state)


def _span(start_ms: int, end_ms: int) -> str:
    """Return the time between two moments; empty where one of them has not come."""
    return f"{end_ms - start_ms} ms" if start_ms and end_ms else ""


def _age(created_ms: int) -> str:
    seconds = max(0.0, time.time() - created_ms / 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
