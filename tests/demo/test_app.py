"""The demo's application: its graph, the client that does the same, and what a run reports."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

import parrot_mq as P
from parrot_mq.demo import client_side
from parrot_mq.demo.app import chain, groups_of, map_reduce
from parrot_mq.demo.client_side import ClientSide, Network
from parrot_mq.demo.meetings import make_meeting
from parrot_mq.demo.monitor import StageProgress
from parrot_mq.demo.prompts import CHAIN, MAP
from parrot_mq.demo.report import LiveProgress, print_result
from parrot_mq.demo.run import Document, Result, Timed, run_demo, stages_of
from parrot_mq.store import Store
from tests.demo.oracle import Oracle
from tests.sdk.fake_service import Failure, FakeService

MEETING = make_meeting(3, num_chunks=19)
MAPS, REDUCES = 19, 3 + 1


@pytest.fixture
def fast_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_side, "MIN_ROUND_TRIP_S", 0.002)
    monkeypatch.setattr(client_side, "MAX_ROUND_TRIP_S", 0.004)


def template_of(function: P.SemanticFunction[..., P.SemanticVariable]) -> str | None:
    return function.__doc__


def test_the_templates_are_those_the_model_was_trained_on() -> None:
    from parrot_mq.demo import app

    assert template_of(app.note_chunk) == MAP
    assert template_of(app.extend_notes) == CHAIN
    assert app.extend_notes.inputs == ("chunk", "notes")
    assert [len(app.merge_notes[arity].inputs) for arity in app.merge_notes] == list(range(2, 9))


async def test_map_reduce_and_chain_reach_the_expected_notes(fake_store: Store) -> None:
    oracle = Oracle(MEETING)
    async with (
        FakeService(fake_store, oracle).serving() as service,
        P.connect(store=fake_store) as client,
        client.session() as session,
    ):
        graph = map_reduce(session, MEETING.chunks)
        assert await graph.result.get(timeout_s=30) == MEETING.expected_notes
        assert len(service.batches) == 1
        assert [(stage.name, len(stage.variables)) for stage in graph.stages] == stages_of("map_reduce", MAPS)
        steps = chain(session, MEETING.chunks)
        assert await steps.result.get(timeout_s=30) == MEETING.expected_notes
        assert len(service.batches) == 2
    assert oracle.calls.count("note_chunk") == MAPS
    assert oracle.calls.count("merge_notes") == REDUCES
    assert oracle.calls.count("extend_notes") == MAPS


@pytest.mark.parametrize(
    ("num_chunks", "stages"),
    [
        (1, [("map", 1)]),
        (8, [("map", 8), ("reduce 1", 1)]),
        (9, [("map", 9), ("reduce 1", 1), ("reduce 2", 1)]),  # the ninth goes up as it is
        (128, [("map", 128), ("reduce 1", 16), ("reduce 2", 2), ("reduce 3", 1)]),
    ],
)
def test_stages(num_chunks: int, stages: list[tuple[str, int]]) -> None:
    assert stages_of("map_reduce", num_chunks) == stages
    assert stages_of("chain", num_chunks) == [("chain", num_chunks)]


def test_groups_hold_at_most_eight_in_order() -> None:
    groups = groups_of(range(20))
    assert list(itertools.chain(*groups)) == list(range(20))
    assert [len(group) for group in groups] == [8, 8, 4]


async def test_a_client_sends_the_same_prompts_one_request_a_call(fake_store: Store, fast_network: None) -> None:
    async with (
        FakeService(fake_store, Oracle(MEETING)).serving() as service,
        P.connect(store=fake_store) as client,
        client.session() as session,
    ):
        for build in (map_reduce, chain):
            await build(session, MEETING.chunks).result.get(timeout_s=30)
        by_service, num_batches = sorted(service.prompts.values()), len(service.batches)
        service.prompts.clear()
        seen: list[str] = []
        side = ClientSide(session, Network(1), lambda stage, variable: seen.append(stage))
        assert await side.map_reduce(MEETING.chunks) == MEETING.expected_notes
        assert len(service.batches) - num_batches <= MAPS + REDUCES  # maps that went out together, together
        before = len(service.batches)
        assert await side.chain(MEETING.chunks) == MEETING.expected_notes
        assert len(service.batches) - before == MAPS
        assert sorted(service.prompts.values()) == by_service
    assert {stage: seen.count(stage) for stage in seen} == dict([*stages_of("map_reduce", MAPS), ("chain", MAPS)])


def test_the_network_takes_the_references_round_trips() -> None:
    trips = [2 * Network(seed).half_trip_s() for seed in range(200)]
    assert 0.218 <= min(trips) < 0.23
    assert 0.33 < max(trips) <= 0.345
    assert Network(7).half_trip_s() == Network(7).half_trip_s()


class Recorder:
    """Keeps what an audience is told."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.last: list[tuple[str, int, int]] = []

    def begin(self, title: str, stages: Sequence[StageProgress]) -> None:
        self.titles.append(title)

    def progress(self, stages: Sequence[StageProgress]) -> None:
        self.last = [(stage.name, stage.num_done, stage.total) for stage in stages]

    def end(self, timed: Timed) -> None:
        assert all(done == total for _, done, total in self.last)


@pytest.mark.redis
async def test_a_run_is_correct_and_leaves_nothing_behind(store: Store, redis_url: str, fast_network: None) -> None:
    document = Document("a meeting", MEETING.chunks, MEETING.expected_notes)
    recorder = Recorder()
    async with FakeService(store, Oracle(MEETING)).serving():
        result = await run_demo(redis_url, document, seed=5, audience=recorder)
    assert result.correct is True
    assert {name: timed.notes for name, timed in result.client.items()} == {
        "map_reduce": MEETING.expected_notes,
        "chain": MEETING.expected_notes,
    }
    assert recorder.titles == [
        "map-reduce through the service",
        "chain through the service",
        "map-reduce driven by a client",
        "chain driven by a client",
    ]
    left = await store.client.keys("pmq:*:sess:*")
    assert left == []
    json_text = json.dumps(result.to_json())
    assert set(json.loads(json_text)) == {
        "summaries",
        "expected",
        "correct",
        "pipeline_s",
        "client_side_s",
        "ratio",
        "tokens",
    }


@pytest.mark.redis
async def test_a_failing_call_ends_the_run_with_its_own_error(store: Store, redis_url: str, fast_network: None) -> None:
    oracle = Oracle(MEETING)

    def answer(spec: object, prompt: str) -> str:
        if oracle.calls.count("merge_notes"):
            raise Failure("EngineFailed", "the engine has had enough")
        return oracle(spec, prompt)  # type: ignore[arg-type]

    document = Document("a meeting", MEETING.chunks, MEETING.expected_notes)
    async with FakeService(store, answer).serving():
        with pytest.raises(P.StepError, match="had enough"):
            await run_demo(redis_url, document)
    assert await store.client.keys("pmq:*:sess:*") == []


def result_of(*, right: bool = True, expected: str | None = "- x") -> Result:
    notes = "- x" if right else "- y"
    return Result(
        expected,
        service={"map_reduce": Timed("- x", 1.0), "chain": Timed(notes, 3.0)},
        client={"map_reduce": Timed("- x", 2.0), "chain": Timed("- x", 6.0)},
        num_tokens=20_500,
    )


def test_a_result_adds_up() -> None:
    assert result_of().to_json() == {
        "summaries": {"map_reduce": "- x", "chain": "- x"},
        "expected": {"map_reduce": "- x", "chain": "- x"},
        "correct": True,
        "pipeline_s": 4.0,
        "client_side_s": 8.0,
        "ratio": 2.0,
        "tokens": 20_500,
    }
    assert result_of(right=False).correct is False
    unknown = result_of(expected=None)
    assert (unknown.correct, unknown.to_json()["expected"]) == (None, None)


def test_the_report_shows_notes_verdicts_and_times() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_result(console, Document("[meeting]", ("a", "b"), "- x"), result_of(right=False))
    print_result(console, Document("file", ("a",), None), result_of(expected=None))
    text = console.export_text()
    for words in ("[meeting]: 2 chunks, 20,500 tokens", "notes by map-reduce", "notes by chain", "exactly as expected"):
        assert words in text
    assert text.count("not as expected") == 1
    assert text.count("notes to expect") == 1
    assert "2.00 x" in text


def test_live_progress_shows_stages_and_speed() -> None:
    console = Console(width=120, record=True, force_terminal=True, file=io.StringIO())
    times_s = [0.0]
    stages = [StageProgress("map", 4), StageProgress("reduce 1", 2)]
    with LiveProgress(console, lambda: times_s[-1]) as live:
        live.begin("map-reduce through the service", stages)
        live.progress(stages)
        times_s.append(2.0)
        stages[0].num_done, stages[0].num_prompt_tokens = 4, 3000
        live.progress(stages)
        times_s.append(3.0)
        stages[1].num_done, stages[1].num_prompt_tokens = 1, 100
        live.progress(stages)
        live.progress(stages)
        live.end(Timed("- x", 1.25))
        live.begin("chain", [StageProgress("chain", 2)])
    text = console.export_text()
    assert text.index("1 of 4: map-reduce through the service") < text.index("2 of 4: chain")
    bars, _, rest = text.partition("  done in 1.2 s")
    assert rest
    *_, mapped, reduced = bars.rstrip().splitlines()
    assert re.search(r"4/4 +1,500 tokens/s 0:00:02 *$", mapped)
    assert re.search(r"1/2 +100 tokens/s 0:00:01 left ", reduced)  # its own second, not the three of the application


def test_documents(tmp_path: Path) -> None:
    document = Document.of_seed(4)
    assert (len(document.chunks), document.expected) == (128, make_meeting(4).expected_notes)
    path = tmp_path / "notes.txt"
    path.write_text("Anna: hello\n" * 25)
    assert [chunk.count("Anna") for chunk in Document.of_file(path).chunks] == [10, 10, 5]
    assert Document.of_file(path).expected is None
    path.write_text("\n \n")
    with pytest.raises(P.ConfigError, match="holds no text"):
        Document.of_file(path)
    with pytest.raises(P.ConfigError, match="cannot be read"):
        Document.of_file(tmp_path / "missing.txt")


async def test_the_progress_task_ends_with_the_run(store: Store, redis_url: str, fast_network: None) -> None:
    before = asyncio.all_tasks()
    document = Document("short", MEETING.chunks[:1], None)
    async with FakeService(store, Oracle(MEETING)).serving():
        await run_demo(redis_url, document)
    assert asyncio.all_tasks() == before
