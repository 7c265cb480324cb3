"""What is lost with an engine, or given back by it, comes back; but not for ever."""

from __future__ import annotations

import pytest

from tests.store.lab import Lab


async def test_a_lease_that_ran_out_makes_it_ready_again(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    await lab.start(request)
    await lab.scheduler.reap()
    assert await lab.state(request) == "running"
    await lab.expire_lease(request)
    assert not await lab.scheduler.reap()
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.engine, record.attempt) == ("ready", "", 1)
    assert await lab.redis.exists(lab.keys.leases) == 0
    assert (await lab.hints("ready"))[-1]["ready"] == f"{request}:{record.rev}"
    claim = await lab.start(request, "e2")
    assert claim.attempt == 2
    await lab.complete(claim)
    assert await lab.text(output) == "done"


async def test_lost_too_often_it_is_a_dead_letter(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    for attempt in range(3):
        await lab.start(request, f"e{attempt}")
        await lab.expire_lease(request)
        await lab.scheduler.reap()
    error = await lab.error(output)
    assert (error.kind, error.engine, error.attempts, error.request) == ("EngineFailed", "e2", 3, request)
    assert "max_attempts" in error.message
    ((_, letter),) = await lab.redis.xrange(lab.keys.dead)
    assert (letter["engine"], letter["attempts"]) == ("e2", "3")


async def test_a_lease_of_what_does_not_run_is_dropped(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.redis.zadd(lab.keys.leases, {request: 1, lab.id("r"): 1})
    await lab.scheduler.reap()
    assert await lab.state(request) == "ready"
    assert await lab.redis.exists(lab.keys.leases) == 0


async def test_a_back_off_of_what_does_not_wait_is_dropped(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.start(request)
    await lab.redis.zadd(lab.keys.delayed, {request: 1, lab.id("r"): 1})
    await lab.scheduler.reap()
    assert await lab.state(request) == "running"
    assert await lab.redis.exists(lab.keys.delayed) == 0


async def test_a_hundred_at_a_time(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x")
    outputs = [lab.variable() for _ in range(150)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests)
    await lab.heartbeat()
    for spec, _ in requests:
        await lab.dispatch(spec.id)
    await lab.engine.start("e1", await lab.receive())
    for spec, _ in requests:
        await lab.expire_lease(spec.id)
    assert await lab.scheduler.reap()
    assert not await lab.scheduler.reap()
    assert set(await lab.states([spec.id for spec, _ in requests])) == {"ready"}


async def test_a_living_engine_is_not_reaped(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.start(request)
    before = await lab.snapshot()
    assert await lab.scheduler.reap_engine("e1", [request]) == (False, False)
    assert await lab.snapshot() == before


async def test_a_dead_engine_gives_everything_back(lab: Lab) -> None:
    session = await lab.session()
    running, received, queued, elsewhere, done = [(await lab.one(session))[0] for _ in range(5)]
    await lab.start(running)
    await lab.start(elsewhere, "e2")
    await lab.run(done)
    await lab.dispatch(received)
    assert len(await lab.receive()) == 1
    await lab.dispatch(queued)
    await lab.scheduler.control("e1", "drain", "")
    await lab.kill_engine()
    assert await lab.scheduler.reap_engine("e1", [running, elsewhere, done, lab.id("r")]) == (True, False)
    assert await lab.states([running, received, queued, elsewhere, done]) == ["ready"] * 3 + ["running", "done"]
    attempts = [record and record.attempt for record in await lab.reader.requests([running, received, queued])]
    assert attempts == [1, 0, 0]
    assert not await lab.redis.exists(lab.keys.engine_queue("e1"), lab.keys.engine_control("e1"))
    before = await lab.snapshot()
    assert await lab.scheduler.reap_engine("e1", [running]) == (True, False)
    assert await lab.snapshot() == before


async def test_a_long_queue_is_taken_back_in_parts(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x")
    outputs = [lab.variable() for _ in range(230)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests)
    await lab.heartbeat()
    for spec, _ in requests:
        await lab.dispatch(spec.id)
    await lab.kill_engine()
    steps = [await lab.scheduler.reap_engine("e1", []) for _ in range(3)]
    assert steps == [(True, True), (True, True), (True, False)]
    assert set(await lab.states([spec.id for spec, _ in requests])) == {"ready"}


async def test_an_engine_that_comes_back_gets_new_streams_and_no_old_work(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    await lab.dispatch(request)
    stale = await lab.receive()
    await lab.kill_engine()
    await lab.scheduler.reap_engine("e1", [])
    await lab.heartbeat()
    assert await lab.engine.start("e1", stale) == [None]
    assert await lab.state(request) == "ready"
    await lab.run(request)


@pytest.mark.parametrize("state", ["queued", "received", "running"])
async def test_what_is_given_back_is_no_attempt(lab: Lab, state: str) -> None:
    request, _ = await lab.one(await lab.session())
    if state == "running":
        fence = (await lab.start(request)).fence
    else:
        await lab.heartbeat()
        fence = await lab.dispatch(request)
        if state == "received":
            await lab.receive()
    await lab.engine.release("e1", [(request, fence)])
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.attempt, record.engine) == ("ready", 0, "")
    assert not await lab.redis.exists(lab.keys.leases)
    assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0
    assert (await lab.redis.xpending(lab.keys.engine_queue("e1"), "engine"))["pending"] == 0
    assert (await lab.hints("ready"))[-1]["ready"] == f"{request}:{record.rev}"
    before = await lab.snapshot()
    await lab.engine.release("e1", [(request, fence), (lab.id("r"), "1.x")])
    assert await lab.snapshot() == before


async def test_giving_back_is_bounded(lab: Lab) -> None:
    small = lab.under(max_undispatches=2)
    request, output = await small.one(await small.session())
    for _ in range(3):
        await small.heartbeat()
        fence = await small.dispatch(request)
        await small.engine.release("e1", [(request, fence)])
    error = await small.error(output)
    assert (error.kind, error.engine) == ("EngineFailed", "e1")
    assert "never started" in error.message
    assert await small.state(request) == "dead"
    assert await small.redis.xlen(small.keys.work) == 0
