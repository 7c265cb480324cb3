"""What can be asked of a variable beside its value (Parrot, OSDI'24: the primitives of its graph)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import orjson

from parrot_mq.messages import FunctionRecord, RequestSpec, SegmentKind, VariableState
from parrot_mq.sdk.explain import info_of
from parrot_mq.sdk.request_info import RequestInfo
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.reader import requests_at_home

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.variable import SemanticVariable


async def producer(link: Link, variable: SemanticVariable) -> RequestInfo | None:
    """Return the request that produces ``variable``, None if nothing does."""
    record = await link.record(variable)
    if not record.producer:
        return None
    request = await link.reader(record.producer).request(record.producer)
    return info_of(request) if request is not None else None


async def consumers(link: Link, variable: SemanticVariable) -> tuple[RequestInfo, ...]:
    """Return the requests that read ``variable``: those of this process, and those that wait for it."""
    await link.confirm([variable], only_made=True)
    waiting = await link.reader(variable.id).waiters(variable.id)
    ids = dict.fromkeys([*(variable._consumers or ()), *waiting])
    return tuple(info_of(request) for request in await requests_at_home(link.store, ids))


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
