"""Hints on their way from the scheduler's store to the engine, and what may be wrong with them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from parrot_mq.messages import Binding, FunctionRecord, PrefixHint, Segment, SegmentKind
from parrot_mq.messages.hint import MAX_RETAIN_S
from parrot_workers.engine.port import PromptSegment, SequenceInput, TakesHints
from parrot_workers.sim import SimEngine
from parrot_workers.worker import hints
from parrot_workers.worker.prompt import SHARED_SALT, prefix_salt
from parrot_workers.worker.stepper import monotonic_s

TEMPLATE = FunctionRecord(
    "answer_it",
    (
        Segment(SegmentKind.CONSTANT, "Review: "),
        Segment(SegmentKind.INPUT, "code"),
        Segment(SegmentKind.OUTPUT, "answer"),
    ),
)
"""What the desk makes of "Review: {{code}}"."""


class HintedEngine(SimEngine):
    """Notes the hints it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.prefilled: list[SequenceInput] = []
        self.retained: dict[str, tuple[tuple[PromptSegment, ...], str, float]] = {}
        self.released: list[str] = []

    def prefill(self, sequence: SequenceInput) -> None:
        self.prefilled.append(sequence)

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        self.retained[key] = (segments, salt, until_s)

    def release(self, key: str) -> None:
        self.released.append(key)


def hint(asked: dict[str, Any], key: str = "k", **more: Any) -> PrefixHint:
    return PrefixHint(**({"key": key, "tenant": "acme", **asked, **more}))


async def reviewed(desk: Any, worker: Any) -> dict[str, Any]:
    """Have a request answered; return what a hint about its prompt says."""
    asked = await desk.ask("Review: {{code}}", values={"code": "x = 1"}, dispatch_to=worker.engine_id)
    await desk.resolved(asked)
    (variable,) = (await desk.request(asked)).inputs
    return {"function": TEMPLATE.digest, "end": 2, "bindings": {"code": Binding(variable=variable)}}


async def test_hints_reach_the_engine(desk: Any, open_store: Any, working: Any, eventually: Any) -> None:
    engine = HintedEngine()
    assert isinstance(engine, TakesHints)
    async with working(open_store, lambda: engine) as worker:
        about = await reviewed(desk, worker)
        before_s = monotonic_s()
        await desk.scheduler.prefill(worker.engine_id, hint(about, "first"))
        await desk.scheduler.retain(worker.engine_id, hint(about, "second", retain_s=60.0, share_prefixes=True))
        await desk.scheduler.retain(worker.engine_id, hint(about, "third", end=1, bindings={}, retain_s=5.0))

        async def arrived() -> bool:
            return bool(engine.prefilled) and len(engine.retained) == 2

        await eventually(arrived)
        await desk.scheduler.unretain(worker.engine_id, "third")

        async def released() -> bool:
            return engine.released == ["third"]

        await eventually(released)
    expected = (PromptSegment("Review: "), PromptSegment("x = 1", is_value=True))
    [sequence] = engine.prefilled
    assert (sequence.id, sequence.segments, sequence.salt) == ("prefill first", expected, "tenant acme")
    segments, salt, until_s = engine.retained["second"]
    assert (segments, salt) == (expected, SHARED_SALT)
    assert before_s + 60 <= until_s <= monotonic_s() + 60
    assert engine.retained["third"][:2] == (expected[:1], "tenant acme")


BAD = {
    "prefill": ["", "{}", "[1]", '{"key": "k"}', '{"key":"k","tenant":"a","function":"f","end":0}'],
    "retain": ['{"key":"k","tenant":"a","function":"f","end":1,"retain_s":1e9}', '{"key":1,"dance":true}'],
}


async def test_bad_hints_are_logged_and_ignored(
    desk: Any, open_store: Any, working: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = HintedEngine()
    with caplog.at_level(logging.WARNING, logger=hints.__name__):
        async with working(open_store, lambda: engine) as worker:
            about = await reviewed(desk, worker)
            for kind, texts in BAD.items():
                for text in texts:
                    await desk.scheduler.control(worker.engine_id, kind, "", text=text)
            gone = {"code": Binding(variable="0-v-gone")}
            unfit = [
                hint(about, "no template", function="f" * 32),
                hint(about, "other tenant", tenant="other"),
                hint(about, "no value", bindings=gone),
                hint(about, "unbound", bindings={}),
            ]
            for one in unfit:
                await desk.scheduler.prefill(worker.engine_id, one)
            await desk.scheduler.prefill(worker.engine_id, hint(about, "good"))

            async def arrived() -> bool:
                return len(caplog.records) == sum(map(len, BAD.values())) + len(unfit) and bool(engine.prefilled)

            await eventually(arrived)
            asked = await desk.ask("echo:still here", dispatch_to=worker.engine_id)
            assert await desk.value(asked) == "still here"
    assert [sequence.id for sequence in engine.prefilled] == ["prefill good"]
    assert engine.retained == {}
    for key in ("no template", "other tenant", "no value", "unbound"):
        assert f"hint {key} to prefill is ignored" in caplog.text


async def test_a_hint_that_is_released_while_it_is_read_is_not_taken(
    desk: Any, open_store: Any, working: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HintedEngine()
    async with working(open_store, lambda: engine) as worker:
        about = await reviewed(desk, worker)
        obey = hints.HintTaker.obey

        def twice(self: hints.HintTaker, store: Any, control: Any) -> None:
            obey(self, store, control)
            if control.kind == "retain":
                obey(self, store, type(control)("0-0", "release", "", text="k"))

        monkeypatch.setattr(hints.HintTaker, "obey", twice)
        await desk.scheduler.retain(worker.engine_id, hint(about, retain_s=9.0))
        await desk.scheduler.prefill(worker.engine_id, hint(about, "last"))

        async def arrived() -> bool:
            return bool(engine.prefilled)

        await eventually(arrived)
    assert (engine.retained, engine.released) == ({}, ["k"])


async def test_an_engine_that_takes_no_hints_goes_on(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store) as worker:
        about = await reviewed(desk, worker)
        await desk.scheduler.prefill(worker.engine_id, hint(about))
        await desk.scheduler.unretain(worker.engine_id, "k")
        asked = await desk.ask("echo:fine", dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "fine"


def test_a_hint_on_the_wire() -> None:
    whole = PrefixHint(
        "k", "acme", "f", 3, {"a": Binding(variable="0-v-1"), "b": Binding(text="")}, share_prefixes=True, retain_s=2.5
    )
    assert PrefixHint.from_json(whole.to_json()) == whole
    assert PrefixHint("k", "acme", "f", 1).to_json() == '{"key":"k","tenant":"acme","function":"f","end":1}'
    with pytest.raises(ValueError, match="retain_s"):
        PrefixHint("k", "acme", "f", 1, retain_s=MAX_RETAIN_S + 1)


@pytest.mark.parametrize("tenant", ["", "acme", SHARED_SALT, "tenant "])
def test_no_tenant_has_the_salt_of_those_who_share(tenant: str) -> None:
    assert prefix_salt(tenant, share_prefixes=False) != SHARED_SALT
    assert prefix_salt(tenant, share_prefixes=True) == SHARED_SALT
