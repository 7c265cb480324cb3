"""Sessions of different partitions use one another's variables."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import parrot_mq as P
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store
from tests.conftest import fake
from tests.sdk.conftest import SETTINGS
from tests.sdk.fake_service import Failure, FakeService


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@pytest.fixture
async def halves() -> AsyncIterator[Store]:
    async with fake(StoreSettings(partitions=2)) as store:
        yield store


@pytest.fixture
async def sessions(halves: Store) -> AsyncIterator[tuple[P.Session, P.Session]]:
    async with P.connect(store=halves, settings=SETTINGS) as client:
        found: dict[int, P.Session] = {}
        while len(found) < 2:
            session = client.session(tenant="acme")
            found.setdefault(session.partition_number, session)
        yield await found[0].open(), await found[1].open()


async def test_a_graph_over_two_partitions(halves: Store, sessions: tuple[P.Session, P.Session]) -> None:
    here, there = sessions
    async with FakeService(halves).serving(), FakeService(halves, partition=1).serving():
        one = step("x", session=here)
        two = step(one, session=there)
        three = step(two, session=here)
        assert await P.gather(one, two, three, timeout_s=20) == ["<step.out:2>", "<step.out:13>", "<step.out:14>"]
        assert {info.output for info in await one.consumers()} == {two.id}
        assert (one.id[0], two.id[0]) == ("0", "1")


async def test_an_explanation_over_two_partitions(halves: Store, sessions: tuple[P.Session, P.Session]) -> None:
    here, there = sessions
    one = step("x", session=here)
    two = step(one, session=there)
    (waiting,) = (await two.explain()).waits_for
    assert waiting.producer is not None
    assert (waiting.id, waiting.name, waiting.producer.output) == (one.id, "out", one.id)


async def test_a_failure_over_two_partitions(halves: Store, sessions: tuple[P.Session, P.Session]) -> None:
    def fail(spec: object, prompt: str) -> str:
        raise Failure("EngineFailed", "no more")

    here, there = sessions
    async with FakeService(halves, fail).serving(), FakeService(halves, partition=1).serving():
        one = step("x", session=here)
        two = step(one, session=there)
        three = step(two, session=there)
        await there.flush()
        theirs = P.connect(store=halves)
        async with theirs:
            with pytest.raises(P.EngineFailed) as caught:
                await theirs.variable(three.id).get(timeout_s=20)
        assert [s.variable for s in caught.value.chain] == [one.id, two.id, three.id]
        assert await P.VariableList([one, three]).cancel() == 0


async def test_an_output_of_another_partition_is_refused(sessions: tuple[P.Session, P.Session]) -> None:
    here, there = sessions
    with pytest.raises(P.BadType, match="must be a variable of the session that calls"):
        step("x", out=there.variable(), session=here)
