"""What the service knows about a variable, made readable."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import orjson

from parrot_mq.errors import ErrorRecord
from parrot_mq.messages import FunctionRecord, Objective, RequestSpec, RequestState, SegmentKind, VariableState
from parrot_mq.store.engine import EngineStore

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.variable import SemanticVariable
    from parrot_mq.store.records import RequestRecord, VariableRecord

MAX_INPUTS_SHOWN = 20


@dataclasses.dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request as it stands: which function, how far it is, where it runs.

    ``attempt`` counts its starts, ``need`` the inputs that it waits for; times are epoch milliseconds, 0 for what has
    not happened.
    """

    id: str
    function: str
    call: str
    state: RequestState
    engine: str
    attempt: int
    need: int
    inputs: tuple[str, ...]
    output: str
    created_ms: int = 0
    ready_ms: int = 0
    queued_ms: int = 0
    started_ms: int = 0
    done_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingInput:
    """An unresolved input, with the request that produces it (None: it must be set by hand)."""

    id: str
    name: str
    state: VariableState
    producer: RequestInfo | None


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why a variable is as it is. ``str()`` gives it as a few readable lines; ``reason`` is the one that matters."""

    variable: str
    name: str
    state: VariableState
    objective: Objective | None
    producer: RequestInfo | None
    waits_for: tuple[WaitingInput, ...]
    error: ErrorRecord | None

    @property
    def reason(self) -> str:
        """One sentence: what has happened, or what it waits for."""
        if self.state is VariableState.READY:
            return "it is ready"
        if self.state is VariableState.ERROR:
            return f"it failed: {self.error.message if self.error else 'for an unknown reason'}"
        if self.producer is None:
            return "nothing produces it; it waits to be set by hand"
        return _progress(self.producer, self.waits_for)

    def __str__(self) -> str:
        label = f"{self.name} ({self.variable})" if self.name else self.variable
        lines = [f"{label} is {self.state.value}: {self.reason}"]
        if self.objective is not None:
            lines.append(f"  objective: {self.objective.kind.value}")
        lines += [f"  waits for {w.name or 'variable'} ({w.id}): {_input_progress(w)}" for w in self.waits_for]
        return "\n".join(lines)


def _progress(request: RequestInfo, waits_for: tuple[WaitingInput, ...]) -> str:
    label = f"{request.function} ({request.id})"
    match request.state:
        case RequestState.WAITING if request.need == 0:
            return f"its request {label} failed on attempt {request.attempt} and waits for its next one"
        case RequestState.WAITING:
            names = ", ".join(waiting.name or waiting.id for waiting in waits_for[:5])
            return f"its request {label} waits for {request.need} input(s): {names or 'being resolved'}"
        case RequestState.READY:
            return f"its request {label} is ready and waits for an engine that serves its model"
        case RequestState.QUEUED:
            return f"its request {label} is queued at engine {request.engine}"
        case RequestState.RUNNING:
            return f"its request {label} runs on engine {request.engine}, attempt {request.attempt}"
        case _:
            return f"its request {label} is {request.state.value}"


def _input_progress(waiting: WaitingInput) -> str:
    if waiting.producer is None:
        return "nothing produces it; it waits to be set by hand"
    where = f" on engine {waiting.producer.engine}" if waiting.producer.engine else ""
    return f"{waiting.producer.function} ({waiting.producer.id}) is {waiting.producer.state.value}{where}"


def _info(record: RequestRecord) -> RequestInfo:
    return RequestInfo(
        id=record.id,
        function=record.function_name,
        call=record.call,
        state=record.state,
        engine=record.engine,
        attempt=record.attempt,
        need=record.need,
        inputs=record.inputs,
        output=record.output,
        created_ms=record.created_ms,
        ready_ms=record.ready_ms,
        queued_ms=record.queued_ms,
        started_ms=record.started_ms,
        done_ms=record.done_ms,
    )


async def explain(link: Link, variable: SemanticVariable) -> Explanation:
    """Return why ``variable`` is as it is; three round trips at most. Raises ``UnknownVariable``."""
    record = await link.record(variable)
    made_by = await _producer_of(link, record)
    waits_for: tuple[WaitingInput, ...] = ()
    if made_by is not None and made_by.state is RequestState.WAITING:
        waits_for = await _unresolved(link, made_by)
    return Explanation(
        record.id, record.name or variable.name, record.state, record.objective, made_by, waits_for, record.error
    )


async def _producer_of(link: Link, record: VariableRecord) -> RequestInfo | None:
    if not record.producer:
        return None
    request = await link.reader(record.producer).request(record.producer)
    return _info(request) if request is not None else None


async def _unresolved(link: Link, request: RequestInfo) -> tuple[WaitingInput, ...]:
    records = await link.reader(request.id).variables(request.inputs, values=False)
    pending = [r for r in records if r and r.state is VariableState.PENDING][:MAX_INPUTS_SHOWN]
    # What is imported from another partition has its name and its producer there.
    at_home = {r.id: r for r in await link.variables_at_home([r.id for r in pending])}
    pending = [at_home.get(r.id, r) for r in pending]
    by_id = {r.id: _info(r) for r in await link.requests_at_home([r.producer for r in pending if r.producer])}
    return tuple(WaitingInput(r.id, r.name, r.state, by_id.get(r.producer)) for r in pending)


async def producer(link: Link, variable: SemanticVariable) -> RequestInfo | None:
    """Return the request that produces ``variable``, None if nothing does."""
    return await _producer_of(link, await link.record(variable))


async def consumers(link: Link, variable: SemanticVariable) -> tuple[RequestInfo, ...]:
    """Return the requests that read ``variable``: those of this process, and those that wait for it."""
    await link.confirm([variable], only_made=True)
    waiting = await link.reader(variable.id).waiters(variable.id)
    ids = dict.fromkeys([*(variable._consumers or ()), *waiting])
    return tuple(_info(request) for request in await link.requests_at_home(ids))


async def prefix_hash(link: Link, variable: SemanticVariable) -> tuple[str, ...]:
    """Return the hashes of the prompt of ``variable`` at its variable boundaries, up to the first unresolved input."""
    record = await link.record(variable)
    if not record.producer:
        return ()
    reader = link.reader(record.producer)
    if variable._request is not None:
        spec, function = variable._request.spec, variable._request.function
    else:
        found = await _stored_prompt(link, record.producer)
        if found is None:
            return ()
        spec, function = found
    ids = spec.inputs(function)
    inputs = {r.id: r for r in await reader.variables(ids, values=False) if r is not None}
    hashes, digest = [], hashlib.sha256()
    for segment in function.segments[: spec.prompt_end]:
        if segment.kind is SegmentKind.CONSTANT:
            digest.update(_framed("constant", segment.text))
            continue
        binding = spec.bindings[segment.text]
        if binding.text is not None:
            digest.update(_framed("text", binding.text))
        else:
            value = inputs.get(binding.variable)
            if value is None or value.state is not VariableState.READY:
                break
            digest.update(_framed("value", value.digest))
        hashes.append(digest.hexdigest()[:32])
    return tuple(hashes)


async def _stored_prompt(link: Link, request_id: str) -> tuple[RequestSpec, FunctionRecord] | None:
    """Return what a request of another process asks for, None once it is finished and has let go of it."""
    request = await link.reader(request_id).request(request_id)
    if request is None or not request.spec_json:
        return None
    spec = RequestSpec.from_json(request.spec_json)
    function = await EngineStore(link.store.of(request_id)).function(request.tenant, spec.function)
    return (spec, function) if function is not None else None


def _framed(kind: str, text: str) -> bytes:
    return orjson.dumps([kind, text])
