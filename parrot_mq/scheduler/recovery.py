"""Take-over: the graph is rebuilt from Redis, then the intake is read on from where it stood before."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import orjson

from parrot_mq.keys import partition_of
from parrot_mq.messages import Objective, RequestState, VariableState
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.store import Reader
from parrot_mq.store.partition import Partition

PIPELINE = 1000
"""Hashes read in one round trip."""
EARLY = 5_000
"""With more waiting requests than this, ready ones start before all are loaded: then task groups may be missed."""

_REQUEST_FIELDS = ["state", "spec", "rev", "tenant", "batch", "engine", "fence", "created_ms"]
_VARIABLE_FIELDS = ["state", "digest", "size_bytes", "objective"]


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """What was loaded: how many requests, and the (variable, tenant) pairs that other partitions still owe."""

    num_requests: int
    imports: tuple[tuple[str, str], ...]


async def recover(
    core: Core,
    partition: Partition,
    now_s: Callable[[], float],
    dispatch: Callable[[], Awaitable[None]],
    over: asyncio.Event,
) -> Recovered:
    """Load the unfinished requests of a partition, the ready ones first; of a large graph they start before the rest.

    The intake's last id must have been noted before: entries from then on are applied after this, and those that are
    older than what was loaded are ignored by their revisions. Ends early once ``over`` is set.
    """
    reader = Reader(partition)
    ids = await reader.live()
    states = await reader.request_fields(ids, ["state"])
    ready = [i for i, (state,) in zip(ids, states, strict=True) if state == RequestState.READY]
    waiting = [i for i, (state,) in zip(ids, states, strict=True) if state != RequestState.READY]
    imports: dict[tuple[str, str], None] = {}
    held: list[RequestNode] = []
    count = 0
    for part in (ready, waiting):
        for start in range(0, len(part), PIPELINE):
            if over.is_set():
                break
            nodes = await _load(core, reader, part[start : start + PIPELINE], now_s())
            count += len(nodes)
            held += (node for node in nodes if node.state is RequestState.READY)
            for node in nodes:
                for variable in node.inputs:
                    if not variable.resolved and partition_of(variable.id) != partition.keys.partition:
                        imports[(variable.id, node.tenant)] = None
        if part is waiting or len(waiting) > EARLY:
            for node in held:
                core.enqueue(node)
            held.clear()
            await dispatch()
    return Recovered(count, tuple(imports))


async def _load(core: Core, reader: Reader, ids: Sequence[str], now_s: float) -> list[RequestNode]:
    nodes: list[RequestNode] = []
    dispatched: list[tuple[RequestNode, str, str]] = []
    for fields in await reader.request_fields(ids, _REQUEST_FIELDS):
        state, spec, rev, tenant, batch, engine, fence, created_ms = fields
        if not state or not spec or RequestState(state).finished:
            continue
        arrival = Arrival(tenant or "", batch or "", int(created_ms or 0))
        node = core.add(orjson.loads(spec), arrival, int(rev or 0), RequestState(state), now_s)
        if node is None:
            continue
        nodes.append(node)
        if node.state in (RequestState.QUEUED, RequestState.RUNNING):
            dispatched.append((node, engine or "", fence or ""))
    variables = list(dict.fromkeys(v.id for node in nodes for v in (*node.inputs, node.output)))
    found = await reader.variable_fields(variables, _VARIABLE_FIELDS)
    for variable_id, (state, digest, size_bytes, objective) in zip(variables, found, strict=True):
        if state == VariableState.READY:
            core.resolve(variable_id, digest or "", int(size_bytes or 0))
        if objective:
            core.want(variable_id, Objective.from_json(objective))
    for node, engine_id, its_fence in dispatched:
        core.adopt(node, engine_id, its_fence)
    return nodes
