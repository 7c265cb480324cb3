"""Setting variables by hand: the first writer wins, and any text arrives as it was sent."""

from __future__ import annotations

import asyncio

import pytest

from parrot_mq.errors import AlreadyProduced, AlreadySet, BadType, StoreError, UnknownVariable, ValueTooLarge
from parrot_mq.settings import StoreSettings
from parrot_mq.store import encode_value
from tests.store.lab import Lab

MIB = 1024 * 1024
TEXTS = {
    "empty": "",
    "newlines": "one\r\ntwo\n\n",
    "nul": "before\0after",
    "controls": "".join(map(chr, range(32))),
    "astral": "🦜𝔓𐍈",
    "combining": "e\u0301 vs \u00e9",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202e\u05e2\u05d5\u05dc\u05dd\u202c",
    "joiners": "👩\u200d👩\u200d👧 \ufeff",
    "looks like a script": "}} {{input:x}} KEYS[1] ' \" \\ %s",
    "highest": "\U0010ffff\ufffd\uffff",
}


async def made(lab: Lab) -> str:
    variable = lab.variable()
    await lab.submit(await lab.session(), [variable])
    return variable.id


@pytest.mark.parametrize("name", TEXTS)
async def test_any_text_arrives_as_it_was_sent(lab: Lab, name: str) -> None:
    variable, text = await made(lab), TEXTS[name]
    await lab.producer.set_variable(variable, lab.value(text))
    record = await lab.reader.variable(variable)
    assert record is not None
    assert (record.state, record.value, record.size_bytes) == ("ready", text, len(text.encode()))
    assert record.value_fence == ""


@pytest.mark.parametrize(
    ("size", "apart"), [(32 * 1024 - 1, False), (32 * 1024, True), (32 * 1024 + 1, True), (8 * MIB, True)]
)
async def test_large_values_live_in_their_own_key(lab: Lab, size: int, apart: bool) -> None:
    variable, text = await made(lab), "ä" * (size // 2) + "x" * (size % 2)
    value = lab.value(text)
    await lab.producer.set_variable(variable, value)
    record = await lab.reader.variable(variable)
    assert record is not None
    assert record.value == text
    assert record.size_bytes == size
    assert bool(record.value_fence) is apart
    assert await lab.redis.exists(lab.keys.value(variable, value.fence)) == int(apart)
    assert await lab.redis.hexists(lab.keys.variable(variable), "value") is not apart
    if apart:
        assert await lab.redis.pttl(lab.keys.value(variable, value.fence)) == -1
        (light,) = await lab.reader.variables([variable], values=False)
        assert light is not None
        assert light.value is None


async def test_a_staged_value_that_nobody_refers_to_goes_by_itself(lab: Lab) -> None:
    variable, value = await made(lab), lab.value("x" * 40_000)
    await lab.producer.stage(variable, value)
    assert 0 < await lab.redis.pttl(lab.keys.value(variable, value.fence)) <= 300_000


async def test_staging_again_leaves_what_is_in_use_alone(lab: Lab) -> None:
    variable, value = await made(lab), lab.value("x" * 40_000)
    await lab.producer.set_variable(variable, value)
    await lab.producer.set_variable(variable, value)  # the answer was lost, say
    assert await lab.redis.pttl(lab.keys.value(variable, value.fence)) == -1


async def test_a_staged_value_that_is_gone_is_an_error(lab: Lab) -> None:
    variable, value = await made(lab), lab.value("x" * 40_000)
    answer = await lab.partition.call(
        "set_variable", variable, "value", "", value.fence, value.size_bytes, value.digest, "", "", ""
    )
    assert answer[1] == "StagedValueLost"
    assert (await lab.redis.hget(lab.keys.variable(variable), "state")) == "pending"


async def test_the_first_writer_wins(lab: Lab) -> None:
    variable = await made(lab)
    await lab.producer.set_variable(variable, lab.value("first"))
    before = await lab.snapshot()
    with pytest.raises(AlreadySet) as caught:
        await lab.producer.set_variable(variable, lab.value("second"))
    assert caught.value.culprit == variable
    await lab.producer.set_variable(variable, lab.value("first"))
    assert await lab.snapshot() == before


async def test_of_many_writers_at_once_one_wins(lab: Lab) -> None:
    variable = await made(lab)
    values = [lab.value(f"writer {i}") for i in range(8)]
    answers = await asyncio.gather(
        *(lab.producer.set_variable(variable, value) for value in values), return_exceptions=True
    )
    won = [value.text for value, answer in zip(values, answers, strict=True) if answer is None]
    assert [type(answer) for answer in answers if answer is not None] == [AlreadySet] * 7
    assert won == [await lab.text(variable)]


async def test_token_ids_are_kept_with_the_value(lab: Lab) -> None:
    variable = await made(lab)
    value = encode_value("ab", lab.partition.settings, "f", (5, 70_000), "llama")
    await lab.producer.set_variable(variable, value)
    record = await lab.reader.variable(variable)
    assert record is not None
    assert (record.token_ids, record.tokens_by) == ((5, 70_000), "llama")


async def test_states_are_read_without_values(lab: Lab) -> None:
    pending, given, failed = lab.variable(), lab.variable("x"), lab.variable()
    await lab.submit(await lab.session(), [pending, given, failed])
    await lab.producer.cancel_variable(failed.id)
    ids = [pending.id, given.id, failed.id, lab.id("v")]
    assert await lab.reader.states(ids) == ["pending", "ready", "error", None]
    assert await lab.reader.states([]) == []
    assert await lab.reader.variables([]) == []


async def test_outcomes_are_read_without_the_rest(lab: Lab) -> None:
    pending, given, large, failed = lab.variable(), lab.variable("x"), lab.variable("y" * 40_000), lab.variable()
    await lab.submit(await lab.session(), [pending, given, large, failed])
    await lab.producer.cancel_variable(failed.id, "not needed")
    *found, unknown = await lab.reader.outcomes([pending.id, given.id, large.id, failed.id, lab.id("v")])
    assert unknown is None
    assert [o and (o.state, o.value) for o in found] == [
        ("pending", None), ("ready", "x"), ("ready", "y" * 40_000), ("error", None),
    ]  # fmt: skip
    assert [o and o.error and o.error.message for o in found] == [None, None, None, "not needed"]


async def test_unknown(lab: Lab) -> None:
    variable = lab.id("v")
    before = await lab.snapshot()
    with pytest.raises(UnknownVariable) as caught:
        await lab.producer.set_variable(variable, lab.value("x"))
    assert caught.value.culprit == variable
    assert await lab.snapshot() == before


async def test_what_has_a_producer_cannot_be_set(lab: Lab) -> None:
    _, output = await lab.one(await lab.session())
    with pytest.raises(AlreadyProduced):
        await lab.producer.set_variable(output, lab.value("x"))


async def test_what_has_failed_cannot_be_set(lab: Lab) -> None:
    variable = await made(lab)
    await lab.producer.cancel_variable(variable)
    with pytest.raises(AlreadySet, match="error already"):
        await lab.producer.set_variable(variable, lab.value("x"))


async def test_what_is_at_home_here_is_no_import(lab: Lab) -> None:
    variable = await made(lab)
    answer = await lab.partition.call("set_variable", variable, "value", "x", "", 1, "d", "", "", "stub")
    assert answer[:3] == ["error", "Conflict", variable]


async def test_waiting_requests_and_readers_learn_of_it(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable(), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request])
    async with lab.partition.blocking.pubsub() as pubsub:
        channels = (lab.keys.session_channel(session), lab.keys.variable_channel(given.id))
        await pubsub.subscribe(*channels)
        await lab.producer.set_variable(given.id, lab.value("go"))
        heard = set()
        async with asyncio.timeout(10):
            while len(heard) < 2:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    assert message["data"] == given.id
                    heard.add(message["channel"])
    assert heard == set(channels)
    (hint,) = await lab.hints("resolved")
    assert (hint["ready"], hint["done"]) == (f"{request[0].id}:2", "")
    assert hint["variables"] == f"{given.id}:{lab.value('go').digest}:2"


# The codec


@pytest.mark.parametrize("bad", [b"bytes", 5, None, ["x"]])
def test_only_text_is_a_value(bad: object) -> None:
    with pytest.raises(BadType, match=type(bad).__name__):
        encode_value(bad, StoreSettings(), "f")  # type: ignore[arg-type]


def test_lone_surrogates_are_no_text() -> None:
    with pytest.raises(BadType, match="position 3"):
        encode_value("abc\ud800", StoreSettings(), "f")


def test_the_limit_counts_bytes() -> None:
    settings = StoreSettings(max_value_bytes=10)
    assert encode_value("ä" * 5, settings, "f").size_bytes == 10
    with pytest.raises(ValueTooLarge, match="max_value_bytes") as caught:
        encode_value("ä" * 5 + "x", settings, "f")
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (11, 10)
    assert isinstance(caught.value, StoreError)


def test_equal_texts_have_equal_digests() -> None:
    settings = StoreSettings()
    assert encode_value("é", settings, "f").digest == encode_value("é", settings, "g").digest
    assert encode_value("é", settings, "f").digest != encode_value("e\u0301", settings, "f").digest
