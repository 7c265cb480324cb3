"""Sessions: opened, closed, expired and deleted with everything that is theirs."""

from __future__ import annotations

import pytest

from parrot_mq.errors import Conflict, UnknownSession
from parrot_mq.store import encode_value
from parrot_mq.store.records import Usage
from tests.store.lab import Lab

STREAMS = ("intake", "events", "dead", "work")


async def test_a_session_is_opened_once(lab: Lab) -> None:
    session = await lab.session()
    record = await lab.reader.session(session)
    assert record is not None
    assert (record.tenant, record.state, record.secret_hash, record.live) == ("acme", "open", "hash", 0)
    await lab.one(session)
    before = await lab.snapshot(without=["sessions"])
    await lab.producer.open_session(session, "acme", "another")
    assert await lab.snapshot(without=["sessions"]) == before
    assert await lab.reader.sessions() == [session]
    assert await lab.redis.zscore(lab.keys.sessions, session) > await lab.scheduler.partition.now_ms() + 3_500_000


async def test_another_tenant_cannot_take_it(lab: Lab) -> None:
    session = await lab.session("acme")
    with pytest.raises(Conflict, match="another tenant"):
        await lab.producer.open_session(session, "globex")


async def test_a_closed_session_lets_its_work_finish(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    await lab.producer.close_session(session)
    await lab.producer.close_session(session)
    await lab.run(request)
    assert await lab.text(output) == "done"


async def test_unknown_sessions(lab: Lab) -> None:
    session = lab.id("s")
    for call in (lab.producer.close_session, lab.producer.cancel_session, lab.producer.delete_session):
        with pytest.raises(UnknownSession) as caught:
            await call(session)
        assert caught.value.culprit == session
    assert await lab.reader.session(session) is None
    assert await lab.reader.session_ids(session) == []
    assert await lab.snapshot() == {}


async def test_an_open_session_is_not_deleted(lab: Lab) -> None:
    session = await lab.session()
    answer = await lab.partition.call("delete_ids", session, 10)
    assert answer[:3] == ["error", "Conflict", session]


async def test_a_deleted_session_leaves_nothing(lab: Lab) -> None:
    """Requests in every state, values of every kind, streams, tombstones: the keyspace is as it was before."""
    await lab.heartbeat()
    other = await lab.session()
    kept, _ = await lab.one(other)
    before = await lab.snapshot(without=[*STREAMS, ":q", ":c", "eng:e1"])

    session = await lab.session()
    _, (first_output, _, _) = await lab.chain(session, 3)
    large, output = lab.variable("x" * 40_000), lab.variable()
    finished = lab.request([large], output)
    await lab.submit(session, [large, output], [finished])
    await lab.producer.want(output.id, stream=True)
    claim = await lab.start(finished[0].id)
    await lab.engine.emit(claim.request, claim.fence, 0, [1], "a")
    settings = lab.partition.settings
    value, raw = (encode_value(c * 40_000, settings, claim.fence) for c in "vr")
    await lab.engine.complete(claim.request, claim.fence, output.id, value, Usage(), raw)
    running, queued, delayed = [(await lab.one(session))[0] for _ in range(3)]
    await lab.start(running)
    await lab.dispatch(queued)
    await lab.partition.call("fail", delayed, (await lab.start(delayed)).fence, "{}", "1")
    await lab.submit(session, [lab.variable() for _ in range(300)])
    assert (await lab.reader.variable(first_output)) is not None

    await lab.producer.delete_session(session)
    assert await lab.snapshot(without=[*STREAMS, ":q", ":c", "eng:e1"]) == before
    assert await lab.state(kept) == "ready"
    with pytest.raises(UnknownSession):
        await lab.producer.delete_session(session)


async def test_the_engines_that_run_something_of_it_are_told(lab: Lab) -> None:
    session = await lab.session()
    request, _ = await lab.one(session)
    claim = await lab.start(request)
    await lab.producer.delete_session(session)
    _, controls = await lab.engine.receive("e1", "0", block_ms=1)
    assert [(c.kind, c.request, c.fence) for c in controls] == [("cancel", request, claim.fence)]
    assert (await lab.engine.renew("e1", [(request, claim.fence)])).lost == (request,)


async def test_consumers_in_other_sessions_get_expired(lab: Lab) -> None:
    session, reader = await lab.session(), await lab.session()
    requests, outputs = await lab.chain(session, 2)
    by_hand, last = lab.variable(), lab.variable()
    await lab.submit(session, [by_hand])
    produced = lab.variable()
    consumers = [lab.request([outputs[1]], produced), lab.request([by_hand, produced], last)]
    await lab.submit(reader, [produced, last], consumers)
    await lab.producer.delete_session(session)
    assert await lab.states([spec.id for spec, _ in consumers]) == ["dead", "dead"]
    assert (await lab.error(last.id)).kind == "Expired"
    assert await lab.live(reader) == 0
    assert await lab.reader.requests(requests) == [None, None]
    assert await lab.reader.waiters(by_hand.id) == []


async def test_a_session_expires_once_nothing_of_it_is_live(lab: Lab) -> None:
    busy, idle, fresh = await lab.session(), await lab.session(), await lab.session()
    request, _ = await lab.one(busy)
    await lab.redis.zadd(lab.keys.sessions, {busy: 1, idle: 2})
    assert await lab.scheduler.expired_sessions() == [idle]
    assert await lab.scheduler.expired_sessions() == [idle]  # until somebody has deleted it
    await lab.producer.delete_session(idle)
    assert await lab.scheduler.expired_sessions() == []
    assert await lab.redis.zscore(lab.keys.sessions, busy) > await lab.scheduler.partition.now_ms()
    await lab.run(request)
    await lab.redis.zadd(lab.keys.sessions, {busy: 1})
    assert await lab.scheduler.expired_sessions(count=1) == [busy]
    assert await lab.reader.sessions() == [busy, fresh]


async def test_a_listed_session_that_does_not_exist_is_forgotten(lab: Lab) -> None:
    await lab.redis.zadd(lab.keys.sessions, {lab.id("s"): 1})
    assert await lab.scheduler.expired_sessions() == []
    assert await lab.snapshot() == {}


async def test_submitting_keeps_the_session(lab: Lab) -> None:
    session = await lab.session()
    await lab.redis.zadd(lab.keys.sessions, {session: 1})
    await lab.submit(session)
    assert await lab.scheduler.expired_sessions() == []


async def test_ids_are_listed_in_pages(lab: Lab) -> None:
    session = await lab.session()
    variables = [lab.variable() for _ in range(700)]
    await lab.submit(session, variables)
    pages = [page async for page in lab.reader.session_id_pages(session, 50)]
    assert all(0 < len(page) <= 50 for page in pages)
    assert {i for page in pages for i in page} == {variable.id for variable in variables}
