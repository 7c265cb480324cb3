"""Lanes: what becomes ready goes into an engine's queue in the same script, within the credits that were granted."""

from __future__ import annotations

import orjson
import pytest

from parrot_mq.errors import Fenced
from parrot_mq.messages import LATENCY, THROUGHPUT
from parrot_mq.store.records import Lane
from parrot_mq.store.scheduler import SchedulerStore
from tests.store.lab import Lab


async def lane(lab: Lab, count: int, model: str = "", engine: str = "e1") -> None:
    """Grant a lane to a living engine."""
    await lab.heartbeat(engine)
    await lab.scheduler.grant({model: Lane(engine, count)})


async def left(lab: Lab, model: str = "") -> int:
    return int(await lab.redis.hget(f"{lab.keys.prefix}lanes", f"credits:{model}") or 0)


async def test_a_submitted_request_goes_by_its_lane(lab: Lab) -> None:
    await lane(lab, 2)
    request, _ = await lab.one(await lab.session())
    (assignment,) = await lab.receive()
    assert assignment.request == request
    assert assignment.offer is not None
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.engine, record.fence, record.rev) == ("queued", "e1", assignment.fence, 2)
    assert await left(lab) == 1
    (hint,) = await lab.hints("dispatched")
    assert (hint["engine"], hint["requests"]) == ("e1", f"{request}:2:{assignment.fence}")
    (claim,) = await lab.engine.start("e1", [assignment])
    assert claim == assignment.offer
    await lab.complete(claim, "by lane")
    assert await lab.state(request) == "done"


async def test_a_chain_advances_inside_the_store(lab: Lab) -> None:
    await lane(lab, 3)
    requests, outputs = await lab.chain(await lab.session(), 3)
    for request in requests:
        (assignment,) = await lab.receive()
        assert assignment.request == request
        (claim,) = await lab.engine.start("e1", [assignment])
        assert claim is not None
        await lab.complete(claim, "next")
    assert await lab.text(outputs[-1]) == "next"
    assert await left(lab) == 0


async def test_a_value_set_by_hand_sends_its_reader_by_the_lane(lab: Lab) -> None:
    await lane(lab, 1)
    given, output = lab.variable(), lab.variable()
    request = lab.request([given], output)
    await lab.submit(await lab.session(), [given, output], [request])
    assert await lab.receive() == []
    await lab.producer.set_variable(given.id, lab.value("at last"))
    (assignment,) = await lab.receive()
    assert assignment.request == request[0].id


async def test_all_of_a_call_or_none_goes_by_the_lane(lab: Lab) -> None:
    await lane(lab, 2)
    session, outputs = await lab.session(), [lab.variable() for _ in range(3)]
    requests = [lab.request([], output) for output in outputs]
    await lab.submit(session, outputs, requests)
    assert await lab.receive() == []
    assert await lab.states([spec.id for spec, _ in requests]) == ["ready"] * 3
    assert await left(lab) == 2
    await lab.submit(session, more := [lab.variable() for _ in range(2)], [lab.request([], output) for output in more])
    assert len(await lab.receive()) == 2
    assert await left(lab) == 0


async def test_a_batch_that_goes_on_waits_for_the_scheduler(lab: Lab) -> None:
    await lane(lab, 2)
    output = lab.variable()
    await lab.submit(await lab.session(), [output], [lab.request([], output)], last=False)
    assert await lab.receive() == []


@pytest.mark.parametrize(
    ("asked", "granted", "goes"), [("m", "m", True), ("", "", True), ("m", "", False), ("", "m", False)]
)
async def test_a_lane_is_for_its_model(lab: Lab, asked: str, granted: str, goes: bool) -> None:
    await lane(lab, 1, granted)
    request, _ = await lab.one(await lab.session(), model=asked)
    assert [a.request for a in await lab.receive()] == ([request] if goes else [])


async def test_requests_of_two_models_in_a_call_go_by_none(lab: Lab) -> None:
    await lab.heartbeat()
    await lab.scheduler.grant({"a": Lane("e1", 5), "b": Lane("e1", 5)})
    outputs = [lab.variable(), lab.variable()]
    requests = [lab.request([], output, model=model) for output, model in zip(outputs, "ab", strict=True)]
    await lab.submit(await lab.session(), outputs, requests)
    assert await lab.receive() == []


async def test_the_engine_is_told_the_objective(lab: Lab) -> None:
    await lane(lab, 2)
    session, plain, throughput = await lab.session(), lab.variable(), lab.variable()
    await lab.submit(session, [throughput])
    await lab.producer.want(throughput.id, THROUGHPUT)
    await lab.submit(session, [], [lab.request([], throughput)])
    await lab.submit(session, [plain], [lab.request([], plain)])
    first, second = await lab.receive()
    assert '"objective":"throughput"' in first.plan_json
    assert "objective" not in second.plan_json
    assert LATENCY.kind != THROUGHPUT.kind


async def test_a_dead_engine_gets_nothing(lab: Lab) -> None:
    await lane(lab, 2)
    await lab.kill_engine()
    request, _ = await lab.one(await lab.session())
    assert await lab.state(request) == "ready"


async def test_a_grant_replaces_all_others_and_a_new_leader_takes_them_back(lab: Lab) -> None:
    await lane(lab, 2, "a")
    await lane(lab, 3, "b", "e2")
    assert (await left(lab, "a"), await left(lab, "b")) == (0, 3)
    await lab.scheduler.raise_epoch(7)
    assert await left(lab, "b") == 0
    with pytest.raises(Fenced, match="epoch"):
        await SchedulerStore(lab.partition, 6).grant({"": Lane("e1", 1)})
    request, _ = await lab.one(await lab.session())
    assert await lab.state(request) == "ready"


async def test_credits_are_shared_among_partitions(lab: Lab) -> None:
    await lab.scheduler.grant({"": Lane("e1", 8), "m": Lane("e1", 1)}, share=3)
    assert (await left(lab), await left(lab, "m")) == (2, 1)


async def test_the_same_submit_again_dispatches_nothing_twice(lab: Lab) -> None:
    await lane(lab, 4)
    session, output = await lab.session(), lab.variable()
    request = lab.request([], output)
    for _ in range(2):
        await lab.submit(session, [output], [request], batch="b1")
    assert len(await lab.receive()) == 1
    assert await left(lab) == 3


async def test_lanes_say_whether_equal_requests_may_run_as_one(lab: Lab) -> None:
    await lab.heartbeat("e1")
    session, plans = await lab.session(), []
    for single_flight in (True, False):
        await lab.scheduler.grant({"": Lane("e1", 1)}, single_flight=single_flight)
        await lab.one(session)
        (assignment,) = await lab.receive()
        plans.append(orjson.loads(assignment.plan_json))
    assert "flight" not in plans[0]
    assert plans[1]["flight"] == ""
    assert plans[1]["rank"] > 0
