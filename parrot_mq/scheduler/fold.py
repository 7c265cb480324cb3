"""Folding intake entries into the core. Entries may come twice and may be older than what is known: both are no-ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from parrot_mq.messages import Objective, RequestState
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.store.scheduler import IntakeEntry

if TYPE_CHECKING:
    from parrot_mq.scheduler.core import Core

_STATES = {state.value: state for state in RequestState}

SHELL_KINDS = frozenset({"work", "import", "outbox", "engine", "why"})
"""Kinds that change nothing here: the shell has something to do in the store."""


def fold(core: Core, entry: IntakeEntry, now_s: float) -> None:
    """Apply one entry. Kinds that are not known here (a newer store's) are passed over."""
    handler = _HANDLERS.get(entry.kind)
    if handler is not None:
        handler(core, entry, now_s)


def _submitted(core: Core, entry: IntakeEntry, now_s: float) -> None:
    fields = entry.fields
    batch = fields["batch"]
    arrival = Arrival(fields["tenant"], batch, int(entry.id.partition("-")[0]))
    states: dict[str, tuple[int, RequestState]] = {}
    for item in fields["states"].split():
        request_id, rev, state = item.rsplit(":", 2)
        states[request_id] = (int(rev), _STATES[state])
    added = []
    for spec in orjson.loads(fields["specs"]):
        rev_and_state = states.get(spec["id"])
        if rev_and_state is not None:
            node = core.add(spec, arrival, *rev_and_state, now_s)
            if node is not None:
                added.append(node)
    _resolve(core, fields["inputs"])
    _want(core, fields["objectives"])
    if fields["last"]:
        for node in core.holds.end(batch):
            core.enqueue(node)
    else:
        core.holds.begin(batch, now_s)
    for node in added:
        if node.state is RequestState.READY:
            core.enqueue(node)


def _resolved(core: Core, entry: IntakeEntry, _now_s: float) -> None:
    _resolve(core, entry.fields["variables"])
    for item in entry.fields["done"].split():
        pair, _, num_output_tokens = item.rpartition(":")
        node, _rev = _node(core, pair)
        if node is not None:
            core.finish(node, int(num_output_tokens))
    _make_ready(core, entry.fields["ready"])


def _ready(core: Core, entry: IntakeEntry, _now_s: float) -> None:
    for pair in entry.fields["dead"].split():
        node, _rev = _node(core, pair)
        if node is not None:
            core.finish(node)
    _make_ready(core, entry.fields["ready"])


def _make_ready(core: Core, pairs: str) -> None:
    for pair in pairs.split():
        node, rev = _node(core, pair)
        if node is not None:
            core.make_ready(node, rev)


def _resolve(core: Core, items: str) -> None:
    for item in items.split():
        variable_id, digest, size_bytes = item.rsplit(":", 2)
        core.resolve(variable_id, digest, int(size_bytes))


def _released(core: Core, entry: IntakeEntry, _now_s: float) -> None:
    node = core.graph.requests.get(entry.fields["request"])
    if node is not None:
        core.make_waiting(node, int(entry.fields["rev"]))


def _objectives(core: Core, entry: IntakeEntry, _now_s: float) -> None:
    _want(core, entry.fields["objectives"])


def _want(core: Core, lines: str) -> None:
    for line in lines.splitlines():
        variable_id, _, objective = line.partition(" ")
        core.want(variable_id, Objective.from_json(objective))


def _discarded(core: Core, entry: IntakeEntry, _now_s: float) -> None:
    for request_id in entry.fields["requests"].split():
        node = core.graph.requests.get(request_id)
        if node is not None:
            core.finish(node)


def _node(core: Core, pair: str) -> tuple[RequestNode | None, int]:
    request_id, _, rev = pair.rpartition(":")
    return core.graph.requests.get(request_id), int(rev)


def _dispatched(core: Core, entry: IntakeEntry, now_s: float) -> None:
    for item in entry.fields["requests"].split():
        request_id, rev, fence = item.split(":")
        node = core.graph.requests.get(request_id)
        if node is not None:
            core.took_lane(node, int(rev), entry.fields["engine"], fence, now_s)


_HANDLERS: dict[str, Callable[[Core, IntakeEntry, float], None]] = {
    "submitted": _submitted,
    "resolved": _resolved,
    "ready": _ready,
    "released": _released,
    "objectives": _objectives,
    "discarded": _discarded,
    "dispatched": _dispatched,
}
