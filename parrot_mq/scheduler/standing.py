"""Why requests sit where they do, as the scheduler sees it. Reads the core and changes nothing in it."""

from __future__ import annotations

from parrot_mq.messages import Aim, EngineAnswer, EngineState, Placed, RequestState, Standing
from parrot_mq.messages.standing import MAX_CONSIDERED, MAX_ENGINES
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import EngineLoad, Placement, refusal
from parrot_mq.scheduler.policy.ahead import until_ready_ms


def aim_of(node: RequestNode) -> Aim:
    """Return what a request is for."""
    objective, group = node.objective, node.group
    return Aim(
        "" if objective is None else objective.kind.value,
        "" if objective is None else node.objective_of,
        "" if group is None else group.id,
        0 if group is None else group.size,
    )


def placed(placement: Placement) -> Placed:
    """Return what is kept of a decision with its request."""
    others = sorted(placement.considered, key=lambda other: (other[1], other[0]))[:MAX_CONSIDERED]
    return Placed(placement.reason.value, placement.predicted_ms, tuple(others), aim_of(placement.request))


def standing(core: Core, request_id: str, now_ms: float) -> Standing | None:
    """Return where a request stands; None if the core does not have it. ``now_ms`` is on the clock of ``Core.decide``.

    Looks at every ready request once, so it is for somebody who asks, not for every decision.
    """
    node = core.graph.requests.get(request_id)
    if node is None:
        return None
    is_ready = node.state is RequestState.READY
    num_before = num_others = 0
    stands = core.equals.head(node)
    if stands is not None:
        for other in core.ready:
            if other is stands or (node.model and other.model and other.model != node.model):
                continue
            if other.tenant != node.tenant:
                num_others += 1
            elif (other.key_ms, other.ticket) < (stands.key_ms, stands.ticket):
                num_before += 1
    serving = [load for load in core.engines.values() if _serves(load, node)] if is_ready else []
    answers = sorted((_answer(load, node, now_ms) for load in serving), key=_order)
    return Standing(
        request=node.id,
        state=node.state,
        aim=aim_of(node),
        engine=node.engine or node.planned_engine,
        held=is_ready and node not in core.equals,
        behind=stands.id if stands is not None and stands is not node else "",
        num_before=num_before,
        num_others=num_others,
        num_engines=len(serving),
        engines=tuple(answers[:MAX_ENGINES]),
        prompt_tokens=node.prompt_tokens,
        output_tokens=node.output_tokens,
        planned_tokens=node.planned_tokens,
        ready_in_ms=round(until_ready_ms(node, core.duration_ms) or 0.0, 1),
    )


def _serves(load: EngineLoad, node: RequestNode) -> bool:
    return load.record is not None and (not node.model or load.model == node.model)


def _answer(load: EngineLoad, node: RequestNode, now_ms: float) -> EngineAnswer:
    assert load.record is not None
    return EngineAnswer(
        load.id,
        refusal(load, node, now_ms),
        round(load.completion_ms(node, now_ms), 1) if load.record.state is EngineState.READY else 0.0,
        load.num_outstanding,
        load.record.max_num_seqs,
    )


def _order(answer: EngineAnswer) -> tuple[bool, bool, float, str]:
    return answer.refusal is not None, not answer.predicted_ms, answer.predicted_ms, answer.id
