"""What ``parrot-mq show`` prints: views of a store as tables."""

from __future__ import annotations

import collections
import graphlib
import time
from collections.abc import Sequence

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parrot_mq.cli.console import literal
from parrot_mq.cli.listing import GAP, Column, Listing
from parrot_mq.errors import UnknownSession, UnknownVariable
from parrot_mq.messages import EngineRecord, RequestState, VariableState
from parrot_mq.sdk.explain import explain_records
from parrot_mq.store import Reader, Store
from parrot_mq.store.reader import engines as read_engines
from parrot_mq.store.records import RequestRecord, VariableRecord

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
_AT_ONCE = 200
"""Requests that are read in one round trip."""
_DIGEST_CHARS = 8

_SESSIONS = (
    Column("session"),
    Column("tenant"),
    Column("state"),
    Column("unfinished", right=True),
    Column("age", dispensable=1, right=True),
)
_REQUESTS = (
    Column("function"),
    Column("state"),
    Column("output"),
    Column("call", dispensable=6),
    Column("engine", dispensable=7),
    Column("tries", dispensable=5, right=True),
    Column("waited", dispensable=3, right=True),
    Column("queued", dispensable=4, right=True),
    Column("ran", dispensable=1, right=True),
    Column("tokens", dispensable=2, right=True),
    Column("error", flexible=True),
)
_ENGINES = (
    Column("engine"),
    Column("kind", dispensable=3),
    Column("model"),
    Column("state"),
    Column("running", right=True),
    Column("waiting", dispensable=1, right=True),
    Column("free blocks", dispensable=2, right=True),
    Column("tokens/s", dispensable=1, right=True),
    Column("host", dispensable=5),
    Column("age", dispensable=4, right=True),
)


async def sessions_view(store: Store) -> Listing:
    """Return a table of all sessions."""
    listing = Listing("sessions", _SESSIONS, empty="none: they go an hour after their last use")
    for partition in store.partitions:
        reader = Reader(partition)
        for session_id in await reader.sessions():
            if record := await reader.session(session_id):
                age = _age(record.created_ms)
                listing.add(session_id, literal(record.tenant), _state(record.state), str(record.live), age)
    return listing


async def session_view(store: Store, session_id: str) -> Listing:
    """Return a table of a session's requests, oldest first; ``UnknownSession`` if there is none."""
    reader = Reader(store.of(session_id, "s"))
    record = await reader.session(session_id)
    if record is None:
        raise UnknownSession(f"no session {session_id}; `parrot-mq show session` lists them", session_id)
    requests = await _requests_of(reader, session_id)
    counts = collections.Counter(request.state.value for request in requests)
    summary = ", ".join([record.state.value, *(f"{count} {state}" for state, count in counts.items())])
    return _requests_listing(f"session {session_id} of {literal(record.tenant or 'no tenant')}: {summary}", requests)


async def call_view(store: Store, call_id: str) -> RenderableType:
    """Return a table of a call's requests, and why the unfinished ones are where they are; ``UnknownVariable`` if no
    session has it.
    """
    reader = Reader(store.of(call_id, "c"))
    for session_id in await reader.sessions():
        requests = [record for record in await _requests_of(reader, session_id) if record.call == call_id]
        if requests:
            listing = _requests_listing(f"call {call_id} in session {session_id}", requests)
            return Group(listing, *await _reasons(store, [r.output for r in requests if not r.state.finished]))
    raise UnknownVariable(f"no session has a call {call_id}; `parrot-mq show session ID` lists a session's", call_id)


async def variable_view(store: Store, variable_id: str) -> RenderableType:
    """Return a table of a variable's fields; ``UnknownVariable`` if there is none."""
    reader = Reader(store.of(variable_id, "v"))
    record = await reader.variable(variable_id)
    if record is None:
        raise UnknownVariable(f"no variable {variable_id}; it expired, or never was", variable_id)
    fields = Table.grid(padding=(0, GAP, 0, 0))
    fields.add_column(style="dim", no_wrap=True)
    fields.add_column(overflow="fold")
    for name, text in (await _variable_rows(reader, record)).items():
        if text:
            fields.add_row(name, text)
    reasons = await _reasons(store, [variable_id] if record.state is VariableState.PENDING else [])
    return Group(Text(f"variable {variable_id}", style="bold"), fields, *reasons)


async def _reasons(store: Store, variables: Sequence[str]) -> list[RenderableType]:
    """Return why variables of one partition are as they are, as text under a heading; nothing without variables."""
    if not variables:
        return []
    records = await Reader(store.of(variables[0])).variables(variables, values=False)
    explanations = await explain_records(store, [record for record in records if record is not None])
    heading = Text("\nwhy", style="bold")
    return [heading, *(Text.from_markup(literal(str(explanation))) for explanation in explanations)]


async def _variable_rows(reader: Reader, record: VariableRecord) -> dict[str, str]:
    producer = await reader.request(record.producer) if record.producer else None
    step = f"{producer.function_name} {producer.id} ({producer.state.value})" if producer else record.producer
    error = record.error
    model, _, digest = record.tokens_by.partition("@")
    return {
        "name": literal(record.name),
        "session": record.session,
        "tenant": literal(record.tenant),
        "state": _state(record.state),
        "error": literal(f"{error.kind}: {error.message}") if error else "",
        "producer": literal(step),
        "waiting for it": " ".join(await reader.waiters(record.id)),
        "objective": record.objective.kind.value if record.objective else "",
        "size": f"{record.size_bytes} bytes" if record.value is not None else "",
        "tokens": f"{len(record.token_ids)} of {literal(model)}, tokenizer {digest[:_DIGEST_CHARS]}"
        if record.token_ids
        else "",
        "age": _age(record.created_ms),
        "took": _span(record.created_ms, record.ready_ms),
        "value": literal(record.value) if record.value is not None else "",
    }


async def engines_view(store: Store) -> Listing:
    """Return a table of the engines."""
    listing = Listing("engines", _ENGINES, empty="none: `parrot-mq engine` starts one")
    for engine_id, record in sorted((await read_engines(store)).items()):
        listing.add(engine_id, *_engine_cells(record))
    return listing


def _engine_cells(record: EngineRecord | None) -> list[str]:
    if record is None:
        return ["", "", _state("no heartbeat"), *[""] * (len(_ENGINES) - 4)]
    return [
        record.kind,
        literal(record.model),
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
    for start in range(0, len(ids), _AT_ONCE):
        records = await reader.requests(ids[start : start + _AT_ONCE])
        found += [record for record in records if record is not None]
    return in_order(found)


def in_order(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return requests as they were submitted; those of one submit (one millisecond) as they depend on each other."""
    producers = {record.output: record.id for record in requests}
    graph = {record.id: [producers[i] for i in record.inputs if i in producers] for record in requests}
    depth = {request: place for place, request in enumerate(graphlib.TopologicalSorter(graph).static_order())}
    return sorted(requests, key=lambda record: (record.created_ms, depth[record.id]))


def _requests_listing(title: str, requests: list[RequestRecord]) -> Listing:
    listing = Listing(title, _REQUESTS, empty="no requests: finished ones go after a while")
    for record in requests:
        usage = orjson.loads(record.usage_json) if record.usage_json else {}
        prompt, output = usage.get("num_prompt_tokens", 0), usage.get("num_output_tokens", 0)
        listing.add(
            literal(record.function_name),
            _progress(record),
            record.output,
            record.call,
            record.engine,
            str(record.attempt) if record.attempt > 1 else "",
            _span(record.created_ms, record.ready_ms),
            _span(record.ready_ms, record.started_ms),
            _span(record.started_ms, record.done_ms),
            f"{prompt} + {output}" if usage else "",
            literal(f"{record.error.kind}: {record.error.message}") if record.error else "",
        )
    return listing


def _progress(record: RequestRecord) -> str:
    """Return the state of a request, and of one that waits, what for."""
    if record.state is not RequestState.WAITING:
        return _state(record.state)
    return f"waits for {record.need}" if record.need else "backs off"


def _state(state: str) -> str:
    style = _STATE_STYLES.get(str(state))
    return f"[{style}]{state}[/]" if style else str(state)


def _span(start_ms: int, end_ms: int) -> str:
    """Return the time between two moments; empty where one of them has not come."""
    if not start_ms or not end_ms:
        return ""
    span_ms = end_ms - start_ms
    return f"{span_ms} ms" if span_ms < 10_000 else f"{span_ms / 1000:.1f} s"


def _age(created_ms: int) -> str:
    seconds = max(0.0, time.time() - created_ms / 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
