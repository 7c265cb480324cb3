from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parrot_mq as P
from parrot_mq.errors import ErrorRecord
from parrot_mq.sdk.streaming import Transcript
from parrot_mq.store import encode_value
from parrot_mq.store.records import Assignment, DispatchItem, TokenPiece, Usage
from tests.sdk.fake_service import Failure, FakeService


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@P.semantic_function
def stripped(text: P.Input, out: P.Output = P.output(transform=P.strip())) -> None:
    """{{text}}:{{out}}"""


def piece(offset: int, text: str, fence: str = "1.a", ids: list[int] | None = None) -> TokenPiece:
    return TokenPiece("0-1", fence, offset, tuple([ord(c) for c in text] if ids is None else ids), text, False)


async def pieces_of(variable: P.SemanticVariable) -> list[str]:
    return [text async for text in variable.stream(timeout_s=10)]


async def test_pieces_come_while_the_text_is_generated(session: P.Session, service: FakeService) -> None:
    service.answer = lambda spec, prompt: "The quick brown fox"
    service.running.clear()
    out = step("x", session=session)
    reading = asyncio.create_task(pieces_of(out))
    await asyncio.sleep(0.1)
    service.running.set()
    assert await reading == ["The q", "uick ", "brown", " fox"]
    assert out.id in service.streamed
    assert await out == "The quick brown fox"
    assert (await out.objective()) == P.TTFT


async def test_a_ready_variable_yields_its_whole_value(
    session: P.Session, client: P.Client, service: FakeService
) -> None:
    out = step("x", session=session)
    await out.get(timeout_s=10)
    assert await pieces_of(out) == ["<step.out:2>"]
    assert await pieces_of(client.variable(out.id)) == ["<step.out:2>"]
    assert await pieces_of(session.variable("by hand")) == ["by hand"]
    assert await pieces_of(session.variable("")) == []


async def test_a_variable_that_is_set_by_hand(session: P.Session) -> None:
    variable = session.variable()
    reading = asyncio.create_task(pieces_of(variable))
    await asyncio.sleep(0.1)
    await variable.set("by hand")
    assert await reading == ["by hand"]


async def test_the_stream_shows_the_text_before_the_transform(session: P.Session, service: FakeService) -> None:
    service.answer = lambda spec, prompt: "  text  "
    service.running.clear()
    out = stripped("x", session=session)
    reading = asyncio.create_task(pieces_of(out))
    await asyncio.sleep(0.1)
    service.running.set()
    assert "".join(await reading) == "  text  "
    assert await out == "text"


async def test_a_failed_step_ends_its_stream(session: P.Session, service: FakeService) -> None:
    def fail(spec: object, prompt: str) -> str:
        raise Failure("EngineFailed", "no more")

    service.answer = fail
    out = step(step("x", session=session), session=session)
    with pytest.raises(P.EngineFailed, match=r"no more \[steps: step.out -> step.out\]"):
        await pieces_of(out)


async def test_a_stream_that_nothing_feeds(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    with pytest.raises(P.NeverSet):
        async for _ in session.variable().stream(timeout_s=0.1):
            pass
    with pytest.raises(P.GetTimeout):
        async for _ in step("x", session=session).stream(timeout_s=0.1):
            pass


async def test_leaving_a_stream_early(session: P.Session, service: FakeService) -> None:
    service.answer = lambda spec, prompt: "The quick brown fox"
    service.running.clear()
    out = step("x", session=session)
    asyncio.get_running_loop().call_later(0.1, service.running.set)
    async with contextlib.aclosing(out.stream(timeout_s=10)) as pieces:
        async for text in pieces:
            assert text == "The q"
            break
    assert await out.get(timeout_s=10) == "The quick brown fox"


class Attempt:
    """An engine by hand: dispatches, starts, emits and completes one request."""

    def __init__(self, service: FakeService, request: str) -> None:
        self.service = service
        self.request = request
        self.fence = ""

    async def start(self) -> None:
        (self.fence,) = await self.service.scheduler.dispatch([DispatchItem(self.request, "engine-1")], ["t"])
        partition = self.service.partition
        answer = await partition.redis.xreadgroup(
            "engine", "engine-1", {partition.keys.engine_queue("engine-1"): ">"}, count=10
        )
        for entry_id, fields in answer[0][1]:
            if fields.get("request") == self.request:
                await self.service.engine.start("engine-1", [Assignment(entry_id, self.request, fields["fence"], "{}")])

    async def emit(self, offset: int, text: str) -> None:
        await self.service.engine.emit(self.request, self.fence, offset, [ord(c) for c in text], text)

    async def give_up(self) -> None:
        await self.service.engine.fail(self.request, self.fence, ErrorRecord("EngineFailed", "lost"), retry=True)
        async with asyncio.timeout(10):
            while await self.state() != "ready":
                await self.service.scheduler.reap()
                await asyncio.sleep(0.02)

    async def state(self) -> str | None:
        partition = self.service.partition
        state: str | None = await partition.redis.hget(partition.keys.request(self.request), "state")
        return state

    async def complete(self, output: str, text: str) -> None:
        value = encode_value(text, self.service.store.settings, "f")
        await self.service.engine.complete(self.request, self.fence, output, value, Usage())


async def test_a_retry_goes_on_or_restarts(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    for second, expected in (("The quick fox", ["The ", "qui", "ck fox"]), ("The slow fox", None)):
        out = step("x", session=session)
        reading = asyncio.create_task(pieces_of(out))
        await asyncio.sleep(0.05)
        producer = await out.producer()
        assert producer is not None
        attempt = Attempt(service, producer.id)
        await attempt.start()
        await attempt.emit(0, "The ")
        await attempt.emit(4, "qui")
        await asyncio.sleep(0.05)
        await attempt.give_up()
        await attempt.start()
        await attempt.emit(0, second)
        await attempt.complete(out.id, second)
        if expected is None:
            with pytest.raises(P.StreamRestarted, match=f"{out.id}.*after 7 characters"):
                await reading
            assert await out.get(timeout_s=10) == second
        else:
            assert await reading == expected


def test_a_gap_is_a_restart() -> None:
    transcript = Transcript("v")
    assert transcript.add(piece(0, "ab")) == "ab"
    with pytest.raises(P.StreamRestarted):
        transcript.add(piece(3, "d"))
    with pytest.raises(P.StreamRestarted):
        Transcript("v").add(piece(1, "b"))


def test_equal_text_from_other_tokens_is_a_restart() -> None:
    transcript = Transcript("v")
    transcript.add(piece(0, "ab", ids=[1, 2]))
    with pytest.raises(P.StreamRestarted):
        transcript.add(piece(0, "ab", "2.b", ids=[1, 3]))


def test_an_engine_without_token_ids() -> None:
    transcript = Transcript("v")
    assert [transcript.add(piece(0, text, ids=[])) for text in ("ab", "cd")] == ["ab", "cd"]
    assert [transcript.add(piece(0, text, "2.b", ids=[])) for text in ("abc", "def")] == ["", "ef"]
    assert transcript.text == "abcdef"


def test_a_token_may_have_no_text_of_its_own() -> None:
    transcript = Transcript("v")
    shown = [
        transcript.add(piece(0, "a", ids=[1])),
        transcript.add(piece(1, "", ids=[2])),
        transcript.add(piece(2, "é", ids=[3])),
    ]
    assert shown == ["a", "", "é"]
    assert transcript.add(piece(2, "éb", "2.b", ids=[3, 4])) == "b"


@given(st.text(min_size=1, max_size=30), st.data())
def test_any_cut_of_any_attempts_shows_the_text_once(text: str, data: st.DataObject) -> None:
    transcript, shown = Transcript("v"), ""
    for attempt in range(data.draw(st.integers(1, 4))):
        known = sorted(transcript._boundaries)
        at = data.draw(st.sampled_from(known)) if attempt else 0
        end = data.draw(st.integers(at, len(text)))
        while at < end:
            following = data.draw(st.integers(at + 1, end))
            shown += transcript.add(piece(at, text[at:following], f"{attempt}.x"))
            at = following
        assert text.startswith(shown)
        assert transcript.text == shown
    shown += transcript.add(piece(0, text, "last"))
    assert shown == text
