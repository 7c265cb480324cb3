"""Taking back a batch of which a later chunk was refused."""

from __future__ import annotations

import pytest

from parrot_mq.errors import UnknownVariable
from tests.store.lab import Lab

NOISE = ("intake", "events", "sessions", "eng:e1", ":q", ":c")


async def test_nothing_of_the_batch_is_left(lab: Lab) -> None:
    """Whatever has become of its requests meanwhile; what was there before is as it was."""
    await lab.heartbeat()
    session = await lab.session()
    made, old = lab.variable(), lab.variable("old")
    await lab.submit(session, [made, old], batch="before")
    before = await lab.snapshot(without=NOISE)
    fresh = [lab.variable("x" * 40_000), *(lab.variable() for _ in range(6))]
    requests = [
        lab.request([fresh[0]], fresh[1]),  # will be done
        lab.request([fresh[0]], fresh[2]),  # running
        lab.request([old], fresh[3]),  # queued
        lab.request([old], fresh[4]),  # ready
        lab.request([fresh[4], made], fresh[5]),  # waiting
    ]
    await lab.submit(session, fresh, requests, batch="b", last=False)
    await lab.run(requests[0][0].id, "y" * 40_000)
    await lab.start(requests[1][0].id)
    await lab.dispatch(requests[2][0].id)
    with pytest.raises(UnknownVariable):
        await lab.submit(session, [], [lab.request([lab.id("v")], made)], batch="b")
    await lab.producer.discard("b", [spec.id for spec, _ in requests], [variable.id for variable in fresh])
    assert await lab.snapshot(without=NOISE) == before
    assert await lab.live(session) == 0
    (hint,) = await lab.hints("discarded")
    assert hint["requests"].split() == [spec.id for spec, _ in requests]
    _, controls = await lab.engine.receive("e1", "0", block_ms=1)
    assert [c.request for c in controls] == [requests[1][0].id, requests[2][0].id]
    assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0


async def test_doing_it_again_changes_nothing(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request], batch="b")
    ids = ([request[0].id], [given.id, output.id])
    await lab.producer.discard("b", *ids)
    before = await lab.snapshot()
    await lab.producer.discard("b", *ids)
    assert await lab.snapshot() == before


async def test_objects_of_other_batches_are_left_alone(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request], batch="other")
    before = await lab.snapshot()
    await lab.producer.discard("b", [request[0].id], [given.id, output.id])
    assert await lab.snapshot() == before


async def test_an_output_made_before_can_be_produced_again(lab: Lab) -> None:
    session, given, made = await lab.session(), lab.variable("x"), lab.variable()
    await lab.submit(session, [given, made], batch="before")
    request = lab.request([given], made)
    await lab.submit(session, [], [request], batch="b")
    await lab.producer.discard("b", [request[0].id], [])
    again = lab.request([given], made)
    await lab.submit(session, [], [again], batch="c")
    await lab.run(again[0].id)
    assert await lab.text(made.id) == "done"


async def test_readers_in_other_batches_do_not_wait_for_ever(lab: Lab) -> None:
    session, reader = await lab.session(), await lab.session()
    given, output, last = lab.variable("x"), lab.variable(), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request], batch="b")
    consumer = lab.request([output], last)
    await lab.submit(reader, [last], [consumer], batch="r")
    await lab.producer.discard("b", [request[0].id], [given.id, output.id])
    assert await lab.state(consumer[0].id) == "dead"
    assert (await lab.error(last.id)).kind == "Cancelled"
    assert await lab.live(reader) == 0
    assert (await lab.hints("ready"))[-1]["dead"] == f"{consumer[0].id}:2"


async def test_many_are_taken_back_in_parts(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x")
    outputs = [lab.variable() for _ in range(450)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests, batch="b")
    await lab.producer.discard("b", [spec.id for spec, _ in requests], [given.id, *(o.id for o in outputs)])
    assert len(await lab.hints("discarded")) == 8
    assert await lab.reader.live() == []
    assert await lab.reader.session_ids(session) == []
