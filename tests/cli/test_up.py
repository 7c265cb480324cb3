"""``parrot-mq up`` and ``demo``: whole stacks in this process' terminal."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from parrot_mq.cli import demo, main
from parrot_mq.cli.up import Interrupts, Terminal, _up
from parrot_mq.demo import client_side
from parrot_mq.demo.run import Document
from parrot_mq.entry import LOG_FORMAT
from parrot_mq.process import ChildState
from parrot_mq.stack import EngineChoice
from parrot_mq.store.server import running_url

pytestmark = pytest.mark.redis

Capture = pytest.CaptureFixture[str]
SIM = EngineChoice("sim", arguments=("--instant",))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARROT_MQ_REDIS_URL", raising=False)


@contextlib.asynccontextmanager
async def up_until(
    capsys: Capture, engines: list[EngineChoice], condition: Callable[[str], bool], timeout_s: float = 60
):  # type: ignore[no-untyped-def]
    """Run ``up`` beside the block, which begins once ``condition(output)`` holds; ``output()`` gives all of it."""
    said: list[str] = []

    def output() -> str:
        said.append(capsys.readouterr().err)
        return "".join(said)

    async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
        tasks.create_task(_up(None, engines, timeout_s))
        while not condition(output()):  # noqa: ASYNC110 - it is output that is waited for
            await asyncio.sleep(0.02)
        yield output


async def test_up_starts_all_of_it_and_ctrl_c_stops_all_of_it(capsys: Capture) -> None:
    async with up_until(capsys, [SIM], lambda text: "export " in text) as output:
        url = running_url()
        assert url is not None
        await asyncio.sleep(0)
        assert f"export PARROT_MQ_REDIS_URL={url}\n" in output()
        assert main_show_engines() == 0
        os.kill(os.getpid(), signal.SIGINT)
    text = output()
    for words in ("started for this folder", "scheduler  ready", "engine-1  ready", "everything has stopped"):
        assert words in text
    assert running_url() is None


def main_show_engines() -> int:
    """Another terminal in the same folder needs no address."""
    from parrot_mq.cli.console import existing_redis

    return 0 if existing_redis(None) == running_url() else 1


async def test_a_second_ctrl_c_does_not_wait_for_engines(capsys: Capture) -> None:
    async with up_until(capsys, [SIM], lambda text: "running: pid" in text):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert running_url() is None


async def test_a_redis_that_crashes_comes_back_with_what_it_had(capsys: Capture) -> None:
    async with up_until(capsys, [SIM], lambda text: "export " in text) as output:
        url = running_url()
        assert url is not None
        client = redis.asyncio.Redis.from_url(url, retry=Retry(ExponentialBackoff(0.2, 0.05), 100))
        try:
            await client.set("kept", "yes")
            os.kill((await client.info("server"))["process_id"], signal.SIGKILL)
            while " redis  back" not in output():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert await client.get("kept") == b"yes"
        finally:
            await client.aclose()
        os.kill(os.getpid(), signal.SIGINT)
    assert "crashed; starting it again" in output()


async def test_interrupts_end_what_is_there() -> None:
    class Told:
        def __init__(self) -> None:
            self.words: asyncio.Queue[str] = asyncio.Queue()

        def hurry(self) -> None:
            self.words.put_nowait("hurry")

        def kill(self) -> None:
            self.words.put_nowait("kill")

    told = Told()
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(interrupts.stop.wait(), 5)
        interrupts.stack = told  # type: ignore[assignment]
        for number, word in ((signal.SIGINT, "hurry"), (signal.SIGTERM, "kill"), (signal.SIGINT, "kill")):
            os.kill(os.getpid(), number)
            assert await asyncio.wait_for(told.words.get(), 5) == word


def test_an_engine_that_cannot_start_is_one_line(capsys: Capture) -> None:
    assert main(["up", "--model", "/nowhere"]) == 1
    assert "error: engine-1 ended with status 2: --model /nowhere" in capsys.readouterr().err


def test_states_are_shown_with_their_process(capsys: Capture) -> None:
    terminal = Terminal()
    terminal.state("engine-1", ChildState.STARTING, "")
    terminal.state("engine-1", ChildState.CRASHED, "ended with SIGKILL")
    terminal.line("scheduler", "a line with [brackets]")
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().err.splitlines()]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", time_of_day) for time_of_day, _ in lines)
    assert [text for _, text in lines] == ["engine-1  crashed: ended with SIGKILL", "scheduler  a line with [brackets]"]


def test_of_a_line_of_a_log_the_time_and_what_is_said_are_shown(capsys: Capture) -> None:
    record = logging.makeLogRecord({"name": "a.b", "levelname": "WARNING", "msg": "x: y"})
    line = logging.Formatter(LOG_FORMAT).format(record)
    Terminal().line("scheduler", line)
    assert capsys.readouterr().err == f"{line[11:19]} scheduler  x: y\n"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A near network, and an engine that spends no time."""
    monkeypatch.setattr(client_side, "MIN_ROUND_TRIP_S", 0.001)
    monkeypatch.setattr(client_side, "MAX_ROUND_TRIP_S", 0.002)
    monkeypatch.setattr(demo, "EngineChoice", functools.partial(EngineChoice, arguments=("--instant",)))


def short_document(seed: int) -> Document:
    return Document(f"seed {seed}", ("Anna: hello\nBen: bye", "Ben: one more thing", "Anna: no"), "- nothing like it")


@pytest.mark.parametrize("given", ["", "redis"])
def test_demo_starts_what_is_missing_and_prints_one_object(
    given: str, fast: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(Document, "of_seed", staticmethod(short_document))
    address = ["--redis-url", request.getfixturevalue("redis_url")] if given else []
    assert main(["demo", "--engine", "sim", "--json", "--seed", "3", *address]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert set(result) == {"summaries", "expected", "correct", "pipeline_s", "client_side_s", "ratio", "tokens"}
    assert set(result["summaries"]) == {"map_reduce", "chain"}
    assert result["correct"] is False  # a simulated engine takes no notes
    # The simulated engine counts four bytes as a token; what the template adds is taken off.
    assert result["tokens"] == sum(-(-len(chunk) // 4) for chunk in short_document(0).chunks)
    assert "starting a scheduler and an engine" in captured.err


def test_demo_of_a_document_prints_its_report(tmp_path: Path, fast: None, capsys: Capture) -> None:
    (tmp_path / "minutes.txt").write_text("Anna: hello\n" * 12)
    assert main(["demo", "--engine", "sim", "--document", "minutes.txt", "--model", "tiny"]) == 0
    text = capsys.readouterr().out
    assert "minutes.txt: 2 chunks" in text
    assert "end-to-end time" in text
    assert "as expected" not in text


def test_demo_with_a_file_that_is_not_there(capsys: Capture) -> None:
    assert main(["demo", "--document", "missing.txt"]) == 1
    assert "--document missing.txt cannot be read" in capsys.readouterr().err
