"""Large fan-outs: served in bounded steps, none lost and none served twice, whoever leads."""

from __future__ import annotations

import pytest

from parrot_mq.store import SchedulerStore
from tests.store.lab import FAILURE, Lab


async def fan_out(lab: Lab, session: str, count: int) -> tuple[str, list[str]]:
    """Submit ``count`` readers of one pending variable; return it and their ids."""
    source = lab.variable()
    await lab.submit(session, [source])
    requests = []
    for start in range(0, count, 250):
        outputs = [lab.variable() for _ in range(min(250, count - start))]
        part = [lab.request([source], output) for output in outputs]
        await lab.submit(session, outputs, part)
        requests += [spec.id for spec, _ in part]
    return source.id, requests


def told(hints: list[dict[str, str]], name: str) -> list[str]:
    return [pair.split(":")[0] for hint in hints for pair in hint.get(name, "").split()]


async def test_a_fan_out_is_served_in_bounded_steps(lab: Lab) -> None:
    small = lab.under(fanout_units=256)
    session = await small.session()
    source, requests = await fan_out(small, session, 2000)
    await small.producer.set_variable(source, small.value("go"))
    assert (await small.states(requests)).count("ready") == 256
    assert await small.redis.xlen(small.keys.work) == 1
    assert (await small.hints("work"))[-1]["variable"] == source
    served = [256]
    more = True
    while more:
        more = await small.scheduler.propagate()
        served.append((await small.states(requests)).count("ready"))
    assert served == [256, 512, 768, 1024, 1280, 1536, 1792, 2000]
    assert not await small.scheduler.propagate()
    assert sorted(told(await small.hints(), "ready")) == sorted(requests)
    assert await small.reader.waiters(source) == []
    assert await small.redis.xlen(small.keys.work) == 0


async def test_a_fan_out_of_an_error(lab: Lab) -> None:
    small = lab.under(fanout_units=64)
    session = await small.session()
    source, requests = await fan_out(small, session, 300)
    await small.producer.cancel_variable(source)
    assert (await small.states(requests)).count("dead") == 32  # who dies costs twice what a value costs
    await small.scheduler.propagate()
    assert (await small.states(requests)).count("dead") == 64
    await small.propagate()
    assert set(await small.states(requests)) == {"dead"}
    assert sorted(told(await small.hints(), "dead")) == sorted(requests)
    assert await small.live(session) == 0


async def test_small_rests_are_served_together(lab: Lab) -> None:
    """Many variables fail at once, each with one reader left: as many steps as the work takes, not one for each."""
    small = lab.under(fanout_units=64)
    session = await small.session()
    sources, outputs = [small.variable() for _ in range(80)], [small.variable() for _ in range(80)]
    requests = [small.request([source], output) for source, output in zip(sources, outputs, strict=True)]
    await small.submit(session, [*sources, *outputs], requests)
    for source in sources:
        await small.redis.hset(small.keys.variable(source.id), mapping={"state": "error", "error": FAILURE.to_json()})
        await small.redis.xadd(small.keys.work, {"variable": source.id})
    assert await small.propagate() == 3
    assert set(await small.states([spec.id for spec, _ in requests])) == {"dead"}


async def test_a_new_leader_goes_on_where_the_old_one_died(lab: Lab) -> None:
    small = lab.under(fanout_units=10)
    session = await small.session()
    source, requests = await fan_out(small, session, 55)
    await small.producer.set_variable(source, small.value("go"))
    await small.scheduler.propagate()
    successor = SchedulerStore(small.partition, epoch=2)
    await successor.raise_epoch(2)
    while await successor.propagate():
        pass
    assert set(await small.states(requests)) == {"ready"}
    assert sorted(told(await small.hints(), "ready")) == sorted(requests)


async def test_several_fan_outs_do_not_mix(lab: Lab) -> None:
    small = lab.under(fanout_units=10)
    session = await small.session()
    first, readers = await fan_out(small, session, 35)
    second, others = await fan_out(small, session, 35)
    await small.producer.set_variable(first, small.value("go"))
    await small.producer.cancel_variable(second)
    await small.propagate()
    assert set(await small.states(readers)) == {"ready"}
    assert set(await small.states(others)) == {"dead"}


async def test_a_wide_graph_dies_level_by_level(lab: Lab) -> None:
    """Each reader has a reader of its own: the errors of one step are fan-outs of the next."""
    small = lab.under(fanout_units=7)
    session = await small.session()
    source, middles, lasts = small.variable(), [], []
    await small.submit(session, [source])
    for _ in range(30):
        middle, last = small.variable(), small.variable()
        requests = [small.request([source], middle), small.request([middle, source], last)]
        await small.submit(session, [middle, last], requests)
        middles.append(requests[0][0].id)
        lasts.append(requests[1][0].id)
    await small.producer.cancel_variable(source.id)
    await small.propagate()
    assert set(await small.states([*middles, *lasts])) == {"dead"}
    assert sorted(told(await small.hints(), "dead")) == sorted([*middles, *lasts])
    assert await small.live(session) == 0


async def test_a_reader_that_comes_during_the_fan_out_is_ready_at_once(lab: Lab) -> None:
    small = lab.under(fanout_units=10)
    session = await small.session()
    source, requests = await fan_out(small, session, 25)
    await small.producer.set_variable(source, small.value("go"))
    output = small.variable()
    late = small.request([source], output)
    await small.submit(session, [output], [late])
    assert await small.state(late[0].id) == "ready"
    await small.propagate()
    assert set(await small.states(requests)) == {"ready"}


@pytest.mark.parametrize("how", ["deleted", "discarded"])
async def test_a_fan_out_whose_variable_goes_meanwhile_leaves_nobody_waiting(lab: Lab, how: str) -> None:
    """Readers in another session, more of them than one script call serves."""
    small = lab.under(fanout_units=10)
    source = small.variable()
    owner, reader = await small.session(), await small.session()
    await small.submit(owner, [source], batch="made")
    outputs = [small.variable() for _ in range(35)]
    requests = [small.request([source], output) for output in outputs]
    await small.submit(reader, outputs, requests, batch="read")
    if how == "deleted":
        await small.producer.delete_session(owner)
        assert await small.reader.variable(source.id) is None
    else:
        await small.producer.discard("made", [], [source.id])
    await small.propagate()
    assert set(await small.states([spec.id for spec, _ in requests])) == {"dead"}
    assert (await small.error(outputs[-1].id)).kind == ("Expired" if how == "deleted" else "Cancelled")
    assert await small.live(reader) == 0


async def test_a_fan_in_is_ready_at_its_last_input(lab: Lab) -> None:
    session, output = await lab.session(), lab.variable()
    inputs = [lab.variable() for _ in range(100)]
    request = lab.request(inputs, output)
    await lab.submit(session, [*inputs, output], [request])
    for i, variable in enumerate(inputs):
        assert await lab.state(request[0].id) == "waiting"
        record = await lab.reader.request(request[0].id)
        assert record is not None
        assert record.need == 100 - i
        await lab.producer.set_variable(variable.id, lab.value(str(i)))
    claim = await lab.start(request[0].id)
    assert [i.text for i in claim.inputs] == [str(i) for i in range(100)]
