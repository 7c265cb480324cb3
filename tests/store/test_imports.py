"""Variables of one partition that requests of another read."""

from __future__ import annotations

import pytest

from parrot_mq.errors import ConfigError, ErrorRecord, UnknownVariable
from parrot_mq.store.records import Usage
from parrot_mq.store.scheduler import fail_import, import_variable, relay_outbox
from tests.store.lab import Lab

Pair = tuple[Lab, Lab]


async def reading(pair: Pair, variable: str, tenant: str = "acme") -> tuple[str, str, str]:
    """Submit a request in the second partition that reads a variable of the first: session, request, output."""
    _, away = pair
    session, output = await away.session(tenant), away.variable()
    request = away.request([variable], output)
    await away.submit(session, [output], [request], batch=away.store.ids.token())
    return session, request[0].id, output.id


async def given(pair: Pair, text: str | None = None) -> tuple[str, str]:
    """Make a variable in the first partition: session, variable."""
    home, _ = pair
    session, variable = await home.session(), home.variable(text)
    await home.submit(session, [variable])
    return session, variable.id


async def test_a_stub_stands_for_it_and_the_scheduler_is_told(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair)
    session, request, _ = await reading(pair, variable)
    assert await away.state(request) == "waiting"
    (hint,) = await away.hints("import")
    assert (hint["variable"], hint["tenant"]) == (variable, "acme")
    stub = await away.redis.hgetall(away.keys.variable(variable))
    assert (stub["home"], stub["state"], stub["users"]) == ("0", "pending", "1")
    assert variable in await away.reader.session_ids(session)
    assert await home.redis.exists(f"{home.keys.variable(variable)}:remote") == 0


@pytest.mark.parametrize("size", [5, 40_000])
@pytest.mark.parametrize("order", ["set, then imported", "imported, then set"])
async def test_the_value_arrives_in_both_orders(pair: Pair, order: str, size: int) -> None:
    home, away = pair
    store = home.store
    _, variable = await given(pair)
    _, request, output = await reading(pair, variable)
    text = "é" * size
    if order == "set, then imported":
        await home.producer.set_variable(variable, home.value(text))
        assert await import_variable(store, 2, variable, "acme") == "delivered"
    else:
        assert await import_variable(store, 2, variable, "acme") == "pending"
        assert await import_variable(store, 2, variable, "acme") == "pending"
        await home.producer.set_variable(variable, home.value(text))
        assert await away.state(request) == "waiting"
        assert [hint["variable"] for hint in await home.hints("outbox")] == [variable]
        assert await relay_outbox(store, home.partition) == 1
    assert await relay_outbox(store, home.partition) == 0
    claim = await away.start(request)
    (seen,) = claim.inputs
    assert (seen.text or await away.engine.fetch(seen.reference)) == text
    await away.complete(claim)
    assert await away.text(output) == "done"


async def test_a_produced_value_comes_with_its_tokens(pair: Pair) -> None:
    home, away = pair
    session = await home.session()
    request, output = await home.one(session)
    _, reader, _ = await reading(pair, output)
    assert await import_variable(home.store, 2, output, "acme") == "pending"
    claim = await home.start(request)
    value = type(home.value("x"))("ab", 2, "digest", "", (1, 2), "m")
    await home.engine.complete(request, claim.fence, output, value, Usage())
    await relay_outbox(home.store, home.partition)
    (seen,) = (await away.start(reader)).inputs
    assert (seen.text, seen.token_ids, seen.tokens_by) == ("ab", (1, 2), "m")


async def test_relaying_twice_is_relaying_once(pair: Pair) -> None:
    """The leader died after the delivery and before it removed the entry."""
    home, away = pair
    _, variable = await given(pair)
    _, request, _ = await reading(pair, variable)
    await import_variable(home.store, 2, variable, "acme")
    await home.producer.set_variable(variable, home.value("x"))
    entries = await home.redis.xrange(home.keys.outbox)
    await relay_outbox(home.store, home.partition)
    await home.redis.xadd(home.keys.outbox, entries[0][1])
    before = await away.snapshot()
    assert await relay_outbox(home.store, home.partition) == 1
    assert {k: v for k, v in (await away.snapshot()).items() if k.startswith(away.keys.prefix)} == {
        k: v for k, v in before.items() if k.startswith(away.keys.prefix)
    }
    assert await away.state(request) == "ready"


@pytest.mark.parametrize("order", ["before", "after"])
async def test_an_error_arrives_too(pair: Pair, order: str) -> None:
    home, away = pair
    _, variable = await given(pair)
    _, request, output = await reading(pair, variable)
    if order == "before":
        await home.producer.cancel_variable(variable, "why")
        await import_variable(home.store, 2, variable, "acme")
    else:
        await import_variable(home.store, 2, variable, "acme")
        await home.producer.cancel_variable(variable, "why")
        await relay_outbox(home.store, home.partition)
    assert await away.state(request) == "dead"
    error = await away.error(output)
    assert (error.kind, error.message) == ("Cancelled", "why")


async def test_another_tenants_variable_is_forbidden(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair, "secret")
    _, request, output = await reading(pair, variable, "globex")
    assert await import_variable(home.store, 2, variable, "globex") == "forbidden"
    await fail_import(home.store, 2, variable, ErrorRecord("Forbidden", "not yours"))
    assert await away.state(request) == "dead"
    assert (await away.error(output)).kind == "Forbidden"


async def test_a_refused_tenant_is_in_nobodys_way(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair, "secret")
    intruder, _, _ = await reading(pair, variable, "globex")
    # While the intruder's stub stands, the owner's read is refused, never mixed up with it.
    session, output = await away.session("acme"), away.variable()
    request = away.request([variable], output)
    with pytest.raises(UnknownVariable):
        await away.submit(session, [output], [request])
    await fail_import(home.store, 2, variable, ErrorRecord("Forbidden", "not yours"))
    await away.submit(session, [output], [request])
    assert await import_variable(home.store, 2, variable, "acme") == "delivered"
    await away.producer.delete_session(intruder)
    claim = await away.start(request[0].id)
    assert [i.text for i in claim.inputs] == ["secret"]


async def test_an_unknown_variable(pair: Pair) -> None:
    home, away = pair
    variable = home.id("v")
    _, request, output = await reading(pair, variable)
    assert await import_variable(home.store, 2, variable, "acme") == "unknown"
    await fail_import(home.store, 2, variable, ErrorRecord("NeverSet", "nobody made it"))
    await fail_import(home.store, 2, variable, ErrorRecord("NeverSet", "nobody made it"))
    assert await away.state(request) == "dead"
    assert (await away.error(output)).kind == "NeverSet"


async def test_a_variable_of_a_partition_that_does_not_exist(pair: Pair) -> None:
    home, _ = pair
    with pytest.raises(ConfigError, match="PARROT_MQ_PARTITIONS"):
        await import_variable(home.store, 2, "9-v-abc", "acme")


async def test_a_variable_that_expires_on_its_way(pair: Pair) -> None:
    home, away = pair
    session, variable = await given(pair)
    _, request, output = await reading(pair, variable)
    await import_variable(home.store, 2, variable, "acme")
    await home.producer.delete_session(session)
    assert await relay_outbox(home.store, home.partition) == 1
    assert await away.state(request) == "dead"
    assert (await away.error(output)).kind == "Expired"


@pytest.mark.parametrize("lost", ["hash", "value"])
async def test_a_variable_that_is_deleted_before_it_is_read(pair: Pair, lost: str) -> None:
    home, away = pair
    _, variable = await given(pair)
    _, _, output = await reading(pair, variable)
    await import_variable(home.store, 2, variable, "acme")
    value = home.value("x" * 40_000)
    await home.producer.set_variable(variable, value)
    await home.redis.delete(home.keys.variable(variable) if lost == "hash" else home.keys.value(variable, value.fence))
    await relay_outbox(home.store, home.partition)
    assert (await away.error(output)).kind == "Expired"


@pytest.mark.parametrize("outcome", ["value", "error"])
async def test_an_importer_that_is_gone_does_not_stop_the_relay(pair: Pair, outcome: str) -> None:
    home, away = pair
    _, first = await given(pair)
    _, second = await given(pair)
    gone, _, _ = await reading(pair, first)
    _, request, _ = await reading(pair, second)
    for variable in (first, second):
        await import_variable(home.store, 2, variable, "acme")
    await away.producer.delete_session(gone)
    assert await away.reader.variable(first) is None
    if outcome == "value":
        await home.producer.set_variable(first, home.value("x"))
    else:
        await home.producer.cancel_variable(first)
    await home.producer.set_variable(second, home.value("x"))
    assert await relay_outbox(home.store, home.partition) == 2
    assert await away.state(request) == "ready"
    assert await away.reader.variable(first) is None


async def test_a_stub_that_was_cancelled_keeps_its_error(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair, "x")
    _, request, _ = await reading(pair, variable)
    await away.producer.cancel_variable(variable)
    assert await import_variable(home.store, 2, variable, "acme") == "delivered"
    assert await away.state(request) == "dead"
    assert (await away.error(variable)).kind == "Cancelled"
    assert await home.text(variable) == "x"


async def test_sessions_of_one_partition_share_the_stub(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair)
    first, one, _ = await reading(pair, variable)
    second, two, _ = await reading(pair, variable)
    assert len(await away.hints("import")) == 1
    await import_variable(home.store, 2, variable, "acme")
    await away.producer.delete_session(first)
    assert await away.reader.requests([one]) == [None]
    await home.producer.set_variable(variable, home.value("x"))
    await relay_outbox(home.store, home.partition)
    assert await away.state(two) == "ready"
    late_session, late, _ = await reading(pair, variable)
    assert await away.state(late) == "ready"
    await away.producer.delete_session(second)
    assert [i.text for i in (await away.start(late)).inputs] == ["x"]
    await away.producer.delete_session(late_session)
    assert await away.reader.variable(variable) is None


async def test_several_readers_in_one_submit_make_one_stub(pair: Pair) -> None:
    _, away = pair
    _, variable = await given(pair)
    session, outputs = await away.session(), [away.variable() for _ in range(3)]
    requests = [away.request([variable], output) for output in outputs]
    await away.submit(session, outputs, requests, batch="b")
    assert await away.redis.hget(away.keys.variable(variable), "users") == "1"
    assert len(await away.hints("import")) == 1
    await away.producer.discard("b", [spec.id for spec, _ in requests], [output.id for output in outputs])
    assert await away.reader.variable(variable) is None
    assert await away.reader.session_ids(session) == []


async def test_discarding_leaves_a_stub_that_others_read(pair: Pair) -> None:
    home, away = pair
    _, variable = await given(pair)
    session, output = await away.session(), away.variable()
    request = away.request([variable], output)
    await away.submit(session, [output], [request], batch="b")
    _, other, _ = await reading(pair, variable)
    await away.producer.discard("b", [request[0].id], [output.id])
    await home.producer.set_variable(variable, home.value("x"))
    await import_variable(home.store, 2, variable, "acme")
    assert await away.state(other) == "ready"
