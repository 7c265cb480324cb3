"""Rules of what is worth doing for a request before it is ready: compute its known prefix, keep it, follow an input.

What of the prompt of a request that waits can be known is the beginning up to its first unresolved input. The declared
graph says that it will be read, roughly when, and what comes behind it: what other systems must guess from clients'
hints or from the past. Pure functions; ``scheduler.ahead`` keeps the books.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable

from parrot_mq.keys import partition_of
from parrot_mq.messages import Binding, EngineState, PrefixHint, RequestState
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.prefix import Step, Template

MIN_TOKENS = 32
"""A shorter beginning is not worth a message: only full blocks are found again, and these are two."""
WORTH_MS = 2.0
"""The predicted saving from which a hint is worth it: about what it costs itself, that is 0.1 ms of Redis and one to
two of reading, filling in and encoding the prefix in the worker."""
RETAIN_SHARE = 0.5
"""Of an engine's KV memory, what hints may keep there. Kept blocks give way only to running sequences, so that more
would leave nothing for what is used often without anybody having announced it."""
PREFILL_SHARE = 0.25
"""Of an engine's KV memory, what is computed ahead and not read yet: as much as the engine itself gives to one."""
FREE_SHARE = 0.5
"""Of the KV memory that no sequence held at the last heartbeat: computing ahead takes at most this part."""
RETAIN_S = 60.0
"""How long one hint keeps a prefix; renewed at half of it. A dead scheduler's wishes are forgotten after it."""
MAX_PATH = 32
"""Requests followed upstream to guess when a request becomes ready; those farther away count as this far."""
UNKNOWN_MS = 60_000.0
"""Until an input that no request makes is expected to be set."""
MAX_TEXT_BYTES = 8 * 1024
"""Text rendered into a prompt by the caller travels in the hint; a beginning with more of it is not hinted."""


def is_worth(load: EngineLoad, num_tokens: float, cached_tokens: int = 0) -> bool:
    """Whether having ``num_tokens`` behind ``cached_tokens`` computed on an engine beforehand is worth a hint."""
    if num_tokens < MIN_TOKENS or load.record is None:
        return False
    return load.record.cost.prefill_ms(num_tokens, cached_tokens) >= WORTH_MS


def retain_budget_tokens(load: EngineLoad) -> int:
    """Return how many tokens hints may keep on an engine; 0 where its memory is unknown."""
    record = load.record
    return 0 if record is None else int(record.num_blocks * record.block_size * RETAIN_SHARE)


def prefill_budget_tokens(load: EngineLoad) -> int:
    """Return how many tokens may be computed ahead on an engine and not be read yet."""
    record = load.record
    if record is None:
        return 0
    return int(min(record.num_blocks * PREFILL_SHARE, record.num_free_blocks * FREE_SHARE) * record.block_size)


def streams(node: RequestNode, variable: VariableNode) -> bool:
    """Whether the tokens of ``variable``, as they are generated, are what ``node`` will read there.

    Not if they are transformed first; not if it comes from another partition, whose stream the engine does not read;
    and not within one call: its continuation reads the producer's own prompt and output, whose keys and values are
    where they were computed.
    """
    producer = variable.producer
    return (
        producer is not None
        and not variable.resolved
        and bool(producer.engine)
        and not producer.transformed
        and producer.tenant == node.tenant
        and variable.id not in node.raw_inputs
        and partition_of(variable.id) == node.partition
    )


def serves(load: EngineLoad | None, node: RequestNode) -> bool:
    """Whether an engine can be planned for a request: it is ready, its memory is known, and it serves the model."""
    return (
        load is not None
        and load.record is not None
        and load.record.state is EngineState.READY
        and load.record.num_blocks > 0
        and node.model in ("", load.model)
    )


def choose(
    node: RequestNode,
    preferred: Iterable[EngineLoad],
    others: Callable[[], Iterable[EngineLoad]],
    num_planned: Callable[[str], int],
) -> EngineLoad | None:
    """Return the engine that ``node`` should be planned for; None if none serves it.

    The first of ``preferred`` (where its prefix, its group, its producer is) that is not crowded: planned for as many
    other requests as run at once there. Else the one of ``others`` with the fewest planned and outstanding, if that is
    not crowded; else the first preferred. ``others`` are asked for only if they are needed.
    """

    def crowd(load: EngineLoad) -> int:
        assert load.record is not None
        return num_planned(load.id) - (node.planned_engine == load.id) - load.record.max_num_seqs

    first: EngineLoad | None = None
    for load in preferred:
        if serves(load, node):
            if crowd(load) < 0:
                return load
            first = first or load
    best = min(
        (load for load in others() if serves(load, node)),
        key=lambda load: (crowd(load) + load.num_outstanding, load.id),
        default=None,
    )
    if first is None or (best is not None and crowd(best) < 0):
        return best
    return first


def next_use_ms(node: RequestNode, duration_ms: Callable[[RequestNode], float], now_ms: float) -> float:
    """Return when ``node`` is expected to be ready: now, plus what its longest chain of producers still takes.

    The chain is the critical path as far as stages tell: at each request the deepest producer, of equals the one that
    takes longest.
    """
    if node.state is not RequestState.WAITING:
        return now_ms
    at_ms = now_ms
    for _ in range(MAX_PATH):
        pending = [variable.producer for variable in node.inputs if not variable.resolved]
        if not pending:
            return at_ms
        producers = [producer for producer in pending if producer is not None]
        if not producers:
            return at_ms + UNKNOWN_MS
        node = max(producers, key=lambda producer: (producer.depth, duration_ms(producer)))
        at_ms += duration_ms(node)
        if node.state is not RequestState.WAITING:
            return at_ms
    return at_ms


def raw_at(template: Template, node: RequestNode, end: int) -> bool:
    """Whether the last of the first ``end`` segments is an earlier output of the same call: a hint cannot name it."""
    segment = template.segments[end - 1]
    return not segment.is_constant and node.bindings[segment.name].get("variable", "") in node.raw_inputs


def text_bytes_at(template: Template, node: RequestNode, end: int) -> int:
    """Return the bytes that the last of the first ``end`` segments adds to a hint."""
    segment = template.segments[end - 1]
    text = None if segment.is_constant else node.bindings[segment.name].get("text")
    return 0 if text is None else len(text.encode())


def hint_key(digest: str, node: RequestNode) -> str:
    """Return the name of the hints about a prefix, the same for all requests that can share its blocks."""
    return digest + _suffix(node.model, node.share_prefixes)


@functools.lru_cache(1024)
def _suffix(model: str, shares: bool) -> str:
    # A request that shares prefixes across tenants uses other blocks than one that does not.
    named = hashlib.blake2b(model.encode(), digest_size=4).hexdigest() if model else ""
    return named + ("+" if shares else "")


def prefix_hint(
    template: Template, node: RequestNode, step: Step, key: str, *, retain_s: float = 0.0, follow: str = ""
) -> PrefixHint:
    """Return the hint about the prompt of ``node`` up to ``step``."""
    bindings = {
        segment.name: Binding(**node.bindings[segment.name])
        for segment in template.segments[: step.end]
        if not segment.is_constant
    }
    return PrefixHint(
        key, node.tenant, node.function, step.end, bindings, node.share_prefixes, retain_s=retain_s, follow=follow
    )
