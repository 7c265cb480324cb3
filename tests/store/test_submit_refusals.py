"""Submits that are refused: a typed error that names the culprit, and nothing left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from parrot_mq.errors import (
    AlreadyProduced,
    AlreadySet,
    BadType,
    Conflict,
    CycleError,
    Overloaded,
    SessionClosed,
    StoreError,
    SubmitError,
    UnknownSession,
    UnknownVariable,
)
from parrot_mq.store.records import NewVariable
from tests.store.lab import Lab


@asynccontextmanager
async def refused(lab: Lab, kind: type[SubmitError], culprit: str) -> AsyncIterator[None]:
    """The block is refused with ``kind`` because of ``culprit``; every key is as it was before."""
    before = await lab.snapshot()
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert caught.value.culprit == culprit
    assert culprit in str(caught.value)
    assert await lab.snapshot() == before


async def test_unknown_session(lab: Lab) -> None:
    session = lab.id("s")
    async with refused(lab, UnknownSession, session):
        await lab.submit(session, [lab.variable("x")])


async def test_closed_session(lab: Lab) -> None:
    session = await lab.session()
    given, output = lab.variable("x"), lab.variable()
    await lab.submit(session, [given, output])
    await lab.producer.close_session(session)
    async with refused(lab, SessionClosed, session):
        await lab.submit(session, [], [lab.request([given], output)])
    async with refused(lab, SessionClosed, session):
        await lab.submit(session, [lab.variable()])


async def test_unknown_input(lab: Lab) -> None:
    session, missing, output = await lab.session(), lab.id("v"), lab.variable()
    fine = lab.variable("fine")
    async with refused(lab, UnknownVariable, missing):
        await lab.submit(session, [fine, output], [lab.request([fine, missing], output)])


async def test_input_of_another_tenant(lab: Lab) -> None:
    secret = lab.variable("secret")
    await lab.submit(await lab.session("globex"), [secret])
    session, output = await lab.session("acme"), lab.variable()
    async with refused(lab, UnknownVariable, secret.id):
        await lab.submit(session, [output], [lab.request([secret], output)])


async def test_output_of_another_tenant(lab: Lab) -> None:
    theirs = lab.variable()
    await lab.submit(await lab.session("globex"), [theirs])
    session, given = await lab.session("acme"), lab.variable("x")
    async with refused(lab, UnknownVariable, theirs.id):
        await lab.submit(session, [given], [lab.request([given], theirs)])


async def test_unknown_output(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.id("v")
    async with refused(lab, UnknownVariable, output):
        await lab.submit(session, [given], [lab.request([given], output)])


async def test_output_in_another_partition(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), f"{lab.number + 1}-v-abc"
    async with refused(lab, UnknownVariable, output):
        await lab.submit(session, [given], [lab.request([given], output)])


@pytest.mark.parametrize("bad", ["", "x", "9-v-abc", "{n}-r-abc", "{n}-v-"])
async def test_variable_with_a_bad_id(lab: Lab, bad: str) -> None:
    session, bad = await lab.session(), bad.format(n=lab.number)
    async with refused(lab, BadType, bad):
        await lab.submit(session, [NewVariable(bad, "x")])


@pytest.mark.parametrize("bad", ["", "x", "9-r-abc", "{n}-v-abc", "{n}-r-"])
async def test_request_with_a_bad_id(lab: Lab, bad: str) -> None:
    session, bad, given, output = await lab.session(), bad.format(n=lab.number), lab.variable("x"), lab.variable()
    async with refused(lab, BadType, bad):
        await lab.submit(session, [given, output], [lab.request([given], output, id=bad)])


async def test_a_variable_twice(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x")
    async with refused(lab, Conflict, given.id):
        await lab.submit(session, [given, given])


async def test_a_request_twice(lab: Lab) -> None:
    session, given, first, second = await lab.session(), lab.variable("x"), lab.variable(), lab.variable()
    request = lab.request([given], first)
    again = lab.request([given], second, id=request[0].id)
    async with refused(lab, Conflict, request[0].id):
        await lab.submit(session, [given, first, second], [request, again])


async def test_a_known_request_with_other_content(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable()
    spec, inputs = lab.request([given], output)
    await lab.submit(session, [given, output], [(spec, inputs)])
    async with refused(lab, Conflict, spec.id):
        await lab.submit(session, [], [(dataclasses.replace(spec, priority=1), inputs)])


async def test_a_variable_of_another_session(lab: Lab) -> None:
    given = lab.variable("x")
    await lab.submit(await lab.session(), [given])
    session = await lab.session()
    async with refused(lab, Conflict, given.id):
        await lab.submit(session, [given])


async def test_a_known_variable_with_another_value(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x")
    await lab.submit(session, [given])
    async with refused(lab, AlreadySet, given.id):
        await lab.submit(session, [NewVariable(given.id, "x", lab.value("y"))])


async def test_a_value_for_what_has_a_producer(lab: Lab) -> None:
    session = await lab.session()
    _, output = await lab.one(session)
    async with refused(lab, AlreadyProduced, output):
        await lab.submit(session, [NewVariable(output, "x", lab.value("y"))])


async def test_a_value_and_a_producer_at_once(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable("y")
    async with refused(lab, AlreadySet, output.id):
        await lab.submit(session, [given, output], [lab.request([given], output)])


async def test_two_producers_in_one_submit(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable()
    async with refused(lab, AlreadyProduced, output.id):
        await lab.submit(session, [given, output], [lab.request([given], output), lab.request([given], output)])


@pytest.mark.parametrize("listed", [False, True])
async def test_two_producers_one_after_the_other(lab: Lab, listed: bool) -> None:
    session = await lab.session()
    _, output = await lab.one(session)
    given = lab.variable("x")
    variables = [given, NewVariable(output, "x")] if listed else [given]
    async with refused(lab, AlreadyProduced, output):
        await lab.submit(session, variables, [lab.request([given], output)])


async def test_a_producer_for_what_is_set(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("x"), lab.variable("y")
    await lab.submit(session, [given, output])
    async with refused(lab, AlreadySet, output.id):
        await lab.submit(session, [], [lab.request([given], output)])


async def test_a_staged_value_that_is_gone(lab: Lab) -> None:
    session, given = await lab.session(), lab.variable("x" * 40_000)
    before = await lab.snapshot()
    with pytest.raises(StoreError, match=f"StagedValueLost.*{given.id}"):
        await lab.producer.submit(session, "b", [], [given], [], last=True)
    assert await lab.snapshot() == before


async def test_a_fault_in_the_last_of_many_leaves_nothing_of_the_first(lab: Lab) -> None:
    session, missing = await lab.session(), lab.id("v")
    given = lab.variable("x")
    outputs = [lab.variable() for _ in range(20)]
    requests = [lab.request([given], output) for output in outputs[:-1]]
    async with refused(lab, UnknownVariable, missing):
        await lab.submit(session, [given, *outputs], [*requests, lab.request([missing], outputs[-1])])


# Cycles


async def test_a_request_that_reads_its_own_output(lab: Lab) -> None:
    session, loop = await lab.session(), lab.variable()
    async with refused(lab, CycleError, loop.id):
        await lab.submit(session, [loop], [lab.request([loop], loop)])


async def test_a_cycle_inside_a_chunk(lab: Lab) -> None:
    session, a, b = await lab.session(), lab.variable(), lab.variable()
    async with refused(lab, CycleError, a.id):
        await lab.submit(session, [a, b], [lab.request([a], b), lab.request([b], a)])


async def test_a_cycle_across_submits(lab: Lab) -> None:
    session = await lab.session()
    a, b, c = (lab.variable() for _ in range(3))
    await lab.submit(session, [a, b, c], [lab.request([a], b)])
    await lab.submit(session, [], [lab.request([b], c)])
    with pytest.raises(CycleError, match=f"{a.id} -> {b.id} -> {c.id}"):
        await lab.submit(session, [], [lab.request([c], a)])
    async with refused(lab, CycleError, a.id):
        await lab.submit(session, [], [lab.request([c], a)])


async def test_a_cycle_through_new_and_old_requests(lab: Lab) -> None:
    """Neither the old requests nor the new ones form it alone."""
    session = await lab.session()
    a, b, new = lab.variable(), lab.variable(), lab.variable()
    await lab.submit(session, [a, b], [lab.request([b], a)])
    async with refused(lab, CycleError, b.id):
        await lab.submit(session, [new], [lab.request([a], new), lab.request([new], b)])


async def test_what_looks_like_a_cycle_but_is_none(lab: Lab) -> None:
    session = await lab.session()
    a, b, c, d, e = (lab.variable() for _ in range(5))
    await lab.submit(session, [a, b, c, d, e], [lab.request([a], c), lab.request([a, b], d), lab.request([c, d], e)])
    given = lab.variable("x")
    await lab.submit(session, [given], [lab.request([given], a), lab.request([given, a], b)])
    assert len(await lab.reader.live()) == 5


async def test_what_is_set_closes_no_cycle(lab: Lab) -> None:
    """A reader of a set variable is not waiting for it, whatever it leads to."""
    session = await lab.session()
    given, made, last = lab.variable("x"), lab.variable(), lab.variable()
    await lab.submit(session, [given, made, last], [lab.request([given, made], last)])
    await lab.submit(session, [], [lab.request([given], made)])
    assert len(await lab.reader.live()) == 2


# Limits


async def overloaded(lab: Lab, submit: Callable[[], Awaitable[None]], match: str, retry_after_s: float) -> None:
    before = await lab.snapshot()
    with pytest.raises(Overloaded, match=match) as caught:
        await submit()
    assert caught.value.retry_after_s == retry_after_s
    assert await lab.snapshot() == before


async def test_the_session_limit(lab: Lab) -> None:
    small = lab.under(max_session_requests=2)
    session = await small.session()
    first, _ = await small.one(session)
    await small.one(session)
    given, output = small.variable("x"), small.variable()
    request = small.request([given], output)
    await overloaded(small, lambda: small.submit(session, [given, output], [request]), "max_session_requests", 1.0)
    await small.one(await small.session())  # another session is not concerned
    await small.run(first)
    await small.submit(session, [given, output], [request])
    await small.submit(session, [given, output], [request])  # the repeat is no new request


async def test_the_limit_of_live_requests(lab: Lab) -> None:
    small = lab.under(max_live_requests=1)
    request, _ = await small.one(await small.session())
    session, given, output = await small.session(), small.variable("x"), small.variable()
    last = small.request([given], output)
    await overloaded(small, lambda: small.submit(session, [given, output], [last]), "max_live_requests", 2.0)
    await small.run(request)
    await small.submit(session, [given, output], [last])
