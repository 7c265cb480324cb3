"""Large graphs on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import parrot_mq as P
from parrot_mq.store import Store
from tests.sdk.fake_service import FakeService

pytestmark = pytest.mark.redis


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@pytest.fixture
async def served(store: Store) -> AsyncIterator[FakeService]:
    async with FakeService(store, lambda spec, prompt: prompt[:8]).serving() as serving:
        yield serving


async def live(store: Store) -> int:
    return int(await store.client.zcard(store.partition(0).keys.live))


async def test_ten_thousand_requests_in_one_submit(store: Store) -> None:
    async with P.connect(store=store) as client, client.session() as session:
        texts = P.map(step, (f"text {i}" for i in range(10_000)))
        await session.flush()
        assert await live(store) == 10_000
        entries = await store.client.xrange(store.partition(0).keys.intake)
        batches = {fields["batch"]: fields["last"] for _, fields in entries if fields["kind"] == "submitted"}
        assert list(batches.values()) == ["1"]
        assert await texts.cancel() == 10_000
        assert await live(store) == 0


async def test_a_refused_chunk_leaves_nothing_behind(store: Store) -> None:
    async with P.connect(store=store) as client:
        session = await client.session().open()
        for i in range(1_000):
            step(f"text {i}", session=session)
        step(client.variable("0-v-nobody"), session=session)
        with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
            await session.flush()
        assert await live(store) == 0
        assert await session.variables() == {}
        assert [key async for key in store.client.scan_iter("*:req:*")] == []
        assert [key async for key in store.client.scan_iter("*:var:*")] == []


async def test_a_chain_of_a_thousand(store: Store, served: FakeService) -> None:
    async with P.connect(store=store) as client, client.session():
        last = step("start")
        for _ in range(999):
            last = step(last)
        assert await last.get(timeout_s=100) == "start:::"
        assert len(served.prompts) == 1_000


async def test_a_failure_at_the_head_of_a_chain_of_a_thousand(store: Store, served: FakeService) -> None:
    async with P.connect(store=store) as client, client.session() as session:
        by_hand = session.variable()
        first = last = step(by_hand)
        for _ in range(999):
            last = step(last)
        await first.cancel("not needed")
        with pytest.raises(P.Cancelled, match="not needed") as caught:
            await last.get(timeout_s=100)
        assert len(caught.value.chain) == 1_000
        assert caught.value.chain[0].variable == first.id
        with pytest.raises(P.Cancelled) as theirs:  # another process looks only so far up
            await client.variable(last.id).get(timeout_s=100)
        assert theirs.value.chain[-1].variable == last.id


async def test_a_fan_in_of_a_thousand(store: Store, served: FakeService) -> None:
    names = [f"note_{i}" for i in range(1_000)]
    merge = P.SemanticFunction.from_template(
        "".join(f"{{{{{name}}}}}\n" for name in names) + "{{output:merged}}", name="merge"
    )
    async with P.connect(store=store) as client, client.session() as session:
        notes = [session.variable(name=name) for name in names]
        merged = merge(*notes)
        for i in range(0, 1_000, 100):
            for note in notes[i : i + 100]:
                await note.set("x")
        assert await merged.get(timeout_s=100) == "x\nx\nx\nx\n"


@pytest.mark.slow
async def test_a_fan_out_of_ten_thousand(store: Store, served: FakeService) -> None:
    async with P.connect(store=store) as client, client.session() as session:
        source = session.variable()
        outs = P.map(step, [source] * 10_000)
        await session.flush()
        await source.set("now")
        assert await outs.get(timeout_s=100) == ["now:"] * 10_000
