"""``parrot-mq show``: what stands in Redis, as tables."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console, RenderableType

import parrot_mq as P
from parrot_mq.cli import main
from parrot_mq.cli.listing import Column, Listing
from parrot_mq.cli.views import (
    _age,
    _span,
    call_view,
    engines_view,
    session_view,
    sessions_view,
    variable_view,
)
from parrot_mq.keys import ENGINES
from parrot_mq.messages import EngineRecord, EngineState
from parrot_mq.store import Store
from parrot_mq.store.engine import register
from tests.sdk.fake_service import Failure, FakeService


@P.semantic_function
def draft(topic: P.Input, text: P.Output = P.output(max_tokens=5)) -> None:
    """Write about {{topic}}:{{text}}"""


@P.semantic_function
def check(text: P.Input, verdict: P.Output = P.output(max_tokens=5)) -> None:
    """Is this right? {{text}}:{{verdict}}"""


def text_of(view: RenderableType, width: int = 250) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


async def test_sessions_and_their_requests(store: Store) -> None:
    async with (
        FakeService(store).serving() as service,
        P.connect(store=store) as client,
        client.session(tenant="acme [x]") as session,
    ):
        service.running.clear()
        text = draft("parrots")
        verdict = check(text)
        await verdict.published()
        listed = text_of(await sessions_view(store))
        assert session.id in listed
        assert "acme [x]" in listed
        shown = text_of(await session_view(store, session.id))
        assert shown.index("draft") < shown.index("check")
        assert "open, 1 " in shown
        assert "1 waiting" in shown
        assert "waits for 1" in shown
        waiting = text_of(await variable_view(store, text.id))
        assert "pending" in waiting
        assert "waiting for it" in waiting
        assert "draft" in waiting
        assert "is ready and waits for an engine that serves its model" in waiting
        assert "no scheduler leads" in waiting
        assert verdict.call is not None
        stuck = text_of(await call_view(store, verdict.call.id))
        assert stuck.index("check") < stuck.index("why") < stuck.index("waits for 1 input: text")
        service.running.set()
        await verdict.get(timeout_s=30)
        shown = text_of(await session_view(store, session.id))
        assert shown.count(" done  ") == 2
        assert "open, 2 done" in shown
        assert text.call is not None
        called = text_of(await call_view(store, text.call.id))
        assert "draft" in called
        assert "check" not in called
        assert "why" not in called
        ready = text_of(await variable_view(store, text.id))
        assert "<draft.text:" in ready
        assert "ready" in ready
        assert "latency" in text_of(await variable_view(store, verdict.id))


async def test_an_error_is_shown_where_it_happened(store: Store) -> None:
    def refuse(spec: object, prompt: str) -> str:
        raise Failure("InvalidRequest", "the prompt is [too] long")

    async with (
        FakeService(store, refuse).serving(),
        P.connect(store=store) as client,
        client.session() as session,
    ):
        text = draft("parrots")
        with pytest.raises(P.InvalidRequest):
            await text.get(timeout_s=30)
        assert "InvalidRequest: the prompt is [too] long" in text_of(await variable_view(store, text.id))
        shown = text_of(await session_view(store, session.id))
        assert "dead" in shown
        assert "the prompt is [too] long" in shown


async def test_what_does_not_exist_is_an_error_with_a_way_on(store: Store) -> None:
    with pytest.raises(P.UnknownSession, match="parrot-mq show session"):
        await session_view(store, "0-s-nothing")
    with pytest.raises(P.UnknownVariable, match="no variable 0-v-nothing"):
        await variable_view(store, "0-v-nothing")
    with pytest.raises(P.UnknownVariable, match="no session has a call"):
        await call_view(store, "0-c-nothing")
    with pytest.raises(P.BadType, match="is the id of a session"):
        await variable_view(store, "0-s-nothing")


async def test_engines_dead_ones_included(store: Store) -> None:
    record = EngineRecord("e-1", "torch", "tiny [b]", EngineState.READY, 8, num_running=3, host="here", pid=7)
    await register(store, record)
    await store.client.zadd(ENGINES, {"e-0": 1})
    shown = text_of(await engines_view(store))
    for words in ("e-1", "torch", "tiny [b]", "3/8", "here:7", "e-0", "no heartbeat"):
        assert words in shown


def test_columns_go_where_room_is_wanting_and_ids_are_never_cut() -> None:
    columns = [Column("id"), Column("host", dispensable=2), Column("n", dispensable=1, right=True), Column("none")]
    listing = Listing("things [bold]here[/]", [*columns, Column("error", flexible=True)], empty="no things")
    assert text_of(listing) == "things here\nno things\n"
    listing.add("0-v-aaaaaaaaaaaaaaaa", "h1", "7", "", "")
    listing.add("0-v-b", "h2", "123", "", "\\[x] " + "went wrong " * 5)
    lines = [line.rstrip() for line in text_of(listing, 120).splitlines()]
    assert lines[:3] == [
        "things here",
        "id                    host    n  error",
        "0-v-aaaaaaaaaaaaaaaa  h1      7",
    ]
    assert lines[3].startswith("0-v-b                 h2    123  [x] went wrong went")
    assert len(lines) == 4
    narrow = text_of(listing, 40)
    assert "0-v-aaaaaaaaaaaaaaaa" in narrow
    assert "h1" not in narrow
    assert "not shown for want of room: host, n" in narrow


def test_from_the_command_line(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "engines", "--redis-url", redis_url]) == 0
    assert "engines" in capsys.readouterr().out
    assert main(["show", "session", "--redis-url", redis_url]) == 0
    assert main(["show", "session", "0-s-x", "--redis-url", redis_url]) == 1
    assert main(["show", "var", "0-v-x", "--redis-url", redis_url]) == 1
    assert main(["show", "call", "what", "--redis-url", redis_url]) == 1
    assert "is not an id of parrot_mq" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "text"),
    [(5, 5, "0 ms"), (1, 10_000, "9999 ms"), (1, 12_345, "12.3 s"), (0, 5, ""), (5, 0, "")],
)
def test_spans(start_ms: int, end_ms: int, text: str) -> None:
    assert _span(start_ms, end_ms) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (90, "1.5 min"), (7200, "2.0 h"), (172800, "2.0 d")])
def test_ages(seconds: float, text: str) -> None:
    assert _age(round((time.time() - seconds) * 1000)) == text
