"""Why an engine does not take a request: for people who ask. The decision itself is ``EngineLoad.admits``."""

from __future__ import annotations

from parrot_mq.messages import EngineState, Refusal
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.books import is_throughput
from parrot_mq.scheduler.policy.load import EngineLoad


def refusal(load: EngineLoad, node: RequestNode, now_ms: float) -> Refusal | None:
    """Return why an engine that serves the model of ``node`` does not admit it now; None if it does."""
    record = load.record
    if record is None:
        return Refusal.DEAD
    if load.admits(node, now_ms):
        return None
    if record.state is not EngineState.READY:
        return Refusal.STARTING if record.state is EngineState.STARTING else Refusal.DRAINING
    if load.suspended:
        return Refusal.SUSPENDED
    if load.room <= 0:
        return Refusal.FULL
    if not load.has_memory_for(node, now_ms):
        return Refusal.MEMORY
    return Refusal.PACED if is_throughput(node) and load.paced_until_ms(now_ms) > now_ms else Refusal.BOUND
