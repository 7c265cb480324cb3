"""The decision log of a scheduler that ran, made again: in this process, and in another one with other hashes."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from parrot_mq.errors import ConfigError
from parrot_mq.messages import LATENCY, THROUGHPUT, CostModel, Deadline, RequestState
from parrot_mq.scheduler import Scheduler
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.decision_log import ASKED, TOLD, DecisionLog, LoggedCore
from parrot_mq.scheduler.nodes import Arrival
from parrot_mq.scheduler.replay import main, replay
from parrot_mq.settings import SchedulerSettings, StoreSettings
from parrot_mq.store import Store, encode_value
from tests.conftest import fake
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, engine, spec_of

Engines = Callable[..., Awaitable[StubEngine]]


def settings(path: Path, **changes: Any) -> SchedulerSettings:
    return dataclasses.replace(QUICK, decision_log=str(path), **changes)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))


async def some_work(app: App, dice: random.Random) -> list[str]:
    """Submit a random graph whose outputs are wanted in different ways; return those that nobody reads."""
    made, read, by_hand = [], set(), app.pending()
    for n in range(dice.randrange(12, 25)):
        inputs = dice.sample(made, min(len(made), dice.randrange(4))) or [
            app.value(f"text {n} " * dice.randrange(1, 200))
        ]
        read.update(inputs)
        if dice.random() < 0.05:
            inputs.append(by_hand)
        made.append(app.call(inputs, max_tokens=dice.choice([4, 64, 500]), priority=dice.randrange(-2, 3)))
    ends = [output for output in made if output not in read]
    await app.submit(chunk=dice.choice([3, 200]))
    for output in ends:
        await app.want(output, dice.choice([LATENCY, THROUGHPUT, Deadline(20)]))
    await app.producer.set_variable(by_hand, encode_value("by hand", app.store.settings, ""))
    return ends


async def a_run(store: Store, engines: Engines, running: Start, path: Path, seed: int, **changes: Any) -> None:
    """A scheduler takes over work that is there, gets more, and sees engines come, vanish and leave."""
    dice = random.Random(seed)
    apps = [await App(store, tenant=tenant).open() for tenant in ("acme", "beta")]
    ends = [(apps[0], end) for end in await some_work(apps[0], dice)]
    first = await engines("e0", slots=2)
    scheduler = Scheduler(store, settings(path, **changes))
    leading = running(scheduler)
    await scheduler.leading.wait()
    await engines("e1", slots=3)
    for app in dice.choices(apps, k=3):
        ends += [(app, end) for end in await some_work(app, dice)]
        await asyncio.sleep(0.02)
    await first.kill()
    second = await engines("e2", slots=4)
    for app, end in ends:
        await app.get(end)
    await second.stop()
    for end in await some_work(apps[1], dice):
        await apps[1].get(end)
    scheduler.stop()
    await leading


def replayed_elsewhere(path: Path) -> subprocess.CompletedProcess[str]:
    """Replay in a process in which sets have another order."""
    return subprocess.run(
        [sys.executable, "-m", "parrot_mq.scheduler.replay", str(path)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(params=[(1, 0, 64.0), (2, 4, 64.0), (3, 0, 0.02)], ids=["plain", "lanes", "rotated"])
async def recorded(request: pytest.FixtureRequest, tmp_path: Path, running: Start) -> AsyncIterator[Path]:
    """The log of a run."""
    path = tmp_path / "decisions.jsonl"
    started: list[StubEngine] = []
    async with fake(StoreSettings(lease_s=0.6, heartbeat_ttl_s=0.4, backoff_base_s=0.05)) as store:

        async def start(name: str, **options: Any) -> StubEngine:
            started.append(StubEngine(store, name, **options))
            record = started[-1].record  # one for which it is worth while to compute ahead
            record = dataclasses.replace(record, num_blocks=4096, num_free_blocks=4096, cost=CostModel(0.3, 0.5, 0.05))
            started[-1].record = record
            return await started[-1].start()

        seed, lane_credits, mib = request.param
        await a_run(store, start, running, path, seed, lane_credits=lane_credits, decision_log_mib=mib)
        for one in started:
            await one.kill()
        yield path


async def test_every_decision_of_a_run_comes_out_the_same(recorded: Path) -> None:
    before = recorded.with_name("decisions.jsonl.1")
    if not before.exists():  # it is all in one file
        lines = lines_of(recorded)
        assert {line.get("told") for line in lines} >= {
            *("add", "decide", "describe", "enqueue", "fold", "learn_function", "look_ahead", "resolve"),
            *("update_engines", "forget_engine"),
        }
        assert any("orders" in line for line in lines)
        assert replay(recorded).num_placements > 50
    for path in (recorded, before):
        if path.exists():
            replayed = replay(path)
            assert replayed.difference is None
            assert replayed.num_told == sum("told" in line for line in lines_of(path))
            elsewhere = await asyncio.to_thread(replayed_elsewhere, path)
            assert (elsewhere.returncode, elsewhere.stderr) == (0, "")
            assert elsewhere.stdout == f"{replayed}\n"


@pytest.mark.parametrize("recorded", [(1, 0, 64.0)], indirect=True, ids=[""])
async def test_a_log_that_was_changed_is_noticed(recorded: Path, tmp_path: Path) -> None:
    lines, other = lines_of(recorded), tmp_path / "changed.jsonl"
    placing = [
        at
        for at, line in enumerate(lines)
        if line.get("told") == "decide" and line["gave"]["has"]["placements"]["tuple"]
    ]

    def changed(at: int, change: Callable[[dict[str, Any]], None]) -> int | None:
        """Return the line of the difference once ``change`` was made to line ``at``."""
        copy = orjson.loads(orjson.dumps(lines))
        change(copy[at])
        write_lines(other, copy)
        found = replay(other).difference
        return None if found is None else found.line

    def elsewhere(line: dict[str, Any]) -> None:
        line["gave"]["has"]["placements"]["tuple"][0]["has"]["engine"]["engine"] = "e9"

    def sooner(line: dict[str, Any]) -> None:
        line["gave"]["has"]["placements"]["tuple"][0]["has"]["predicted_ms"] += 0.001

    for at in (placing[0], placing[-1]):
        assert changed(at, elsewhere) == at + 1
        assert changed(at, sooner) == at + 1

    slower = orjson.loads(orjson.dumps(lines))
    for line in slower:
        if line.get("told") == "update_engines":
            for _, record in line["with"][0]["dict"]:
                if record is not None:
                    record["has"]["cost"]["has"]["decode_base_ms"] *= 3
    write_lines(other, slower)
    noticed = replay(other).difference
    assert noticed is not None
    assert noticed.line == placing[0] + 1
    write_lines(other, [line for line in lines if line.get("told") != "update_engines"])
    assert replay(other).difference is not None


def random_telling(core: Core, dice: random.Random, steps: int, start: int = 0) -> None:
    """Tell a core of requests, engines and ends, without a store."""
    for n in range(start, start + steps):
        match dice.randrange(6):
            case 0 | 1:
                names = [r.removeprefix("0-r-") for r in core.graph.requests]
                inputs = dice.sample(names, min(len(names), dice.randrange(3)))
                state = RequestState.WAITING if inputs else RequestState.READY
                spec = spec_of(f"n{n}", inputs, sampling={"max_tokens": dice.choice([5, 50, 500])})
                node = core.add(spec, Arrival(dice.choice("abc"), "batch", 1000 + n), 1, state, float(n))
                assert node is not None
                core.enqueue(node)
            case 2:
                names = [f"e{i}" for i in range(dice.randrange(1, 9))]
                core.update_engines({name: engine(name, slots=dice.randrange(1, 5)) for name in names})
            case 3 if core.graph.requests:
                core.want(
                    dice.choice(list(core.graph.requests)).replace("-r-", "-v-"), dice.choice([LATENCY, THROUGHPUT])
                )
            case 4:
                for node in [node for node in core.graph.requests.values() if node.engine][: dice.randrange(9)]:
                    core.finish(node, dice.randrange(1, 40))
                    for consumer in [v for v in core.graph.requests.values() if v.state is RequestState.WAITING]:
                        if all(variable.producer is None for variable in consumer.inputs):
                            core.make_ready(consumer, consumer.rev + 1)
            case _:
                core.decide(float(n))


def test_a_file_that_is_full_gives_way_to_one_that_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    core = LoggedCore(QUICK, 3, DecisionLog(path, 60_000))
    random_telling(core, random.Random(4), 1500)
    assert path.stat().st_size < 60_000 + 2000 + len(path.read_bytes().splitlines()[0])
    before = path.with_name("log.1")
    assert "core" in lines_of(path)[0]
    assert "core" in lines_of(before)[0]
    assert sorted(tmp_path.iterdir()) == [path, before]
    for file in (path, before):
        replayed = replay(file)
        assert replayed.difference is None
        assert replayed.num_told == len(lines_of(file)) - 1
    assert replay(before).num_told > 50
    assert replay(before).num_placements > 10


def test_the_next_leader_writes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for epoch in (1, 2):
        random_telling(LoggedCore(QUICK, epoch, DecisionLog(path, 10**9)), random.Random(epoch), 200)
    assert [line["epoch"] for line in lines_of(path) if "core" in line] == [1, 2]
    assert replay(path).difference is None
    assert replay(path).num_told == len(lines_of(path)) - 2


def test_with_a_large_graph_a_file_grows_and_then_the_log_pauses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("parrot_mq.scheduler.decision_log.MAX_CHECKPOINT", 40)
    path, before, size = tmp_path / "log", tmp_path / "log.1", 60_000
    core = LoggedCore(QUICK, 1, DecisionLog(path, size))

    def submit(name: str) -> None:
        node = core.add(spec_of(name), Arrival("a", "b", 1), 1, RequestState.READY, 0.0)
        assert node is not None
        core.enqueue(node)

    for n in range(50):  # too many to begin a new file
        submit(f"n{n}")
    assert path.stat().st_size < size
    while path.stat().st_size < 2 * size:
        core.decide(0.0)
    assert caplog.text.count("grows until then, up to 4 times its size") == 1
    assert "pauses" not in caplog.text
    while "it pauses until then" not in caplog.text:
        core.decide(0.0)
    core.decide(0.0)
    written = path.stat().st_size
    assert 4 * size <= written < 4 * size + 1000
    assert lines_of(path)[-1] == {"epoch": 1, "paused": 50}
    assert not before.exists()
    for node in list(core.graph.requests.values())[10:]:
        core.finish(node)
    assert before.stat().st_size == written
    core.update_engines({"e0": engine("e0", slots=20)})
    assert len(core.decide(0.0).placements) == 10
    assert (replay(path).difference, replay(path).num_placements, replay(path).num_unfinished) == (None, 10, 0)
    assert (replay(before).difference, replay(before).num_unfinished) == (None, 50)
    assert replay(before).num_told > 1000
    assert main([str(before)]) == 0
    assert "the log pauses here: 50 requests were unfinished" in capsys.readouterr().out
    for n in range(50):
        submit(f"m{n}")
    while caplog.text.count("grows until then") != 2:  # each time anew
        core.decide(0.0)


def test_a_disk_that_is_full_ends_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = LoggedCore(QUICK, 1, DecisionLog(tmp_path / "log", 10**9))

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("parrot_mq.scheduler.decision_log.os.write", full)
        random_telling(core, random.Random(1), 100)
    assert caplog.text.count("ends here: [Errno 28] No space left on device") == 1


def test_every_method_of_the_core_is_written_down_or_changes_nothing() -> None:
    public = {name for name, _ in inspect.getmembers(Core, inspect.isfunction) if not name.startswith("_")}
    assert public == {*TOLD, *ASKED}


def test_what_the_core_calls_itself_is_no_news(tmp_path: Path) -> None:
    core = LoggedCore(QUICK, 1, DecisionLog(tmp_path / "log", 10**9))
    core.update_engines({"e0": engine("e0")})
    node = core.add(spec_of("a"), Arrival("acme", "batch", 1), 1, RequestState.WAITING, 0.0)
    assert node is not None
    core.make_ready(node, 2)
    assert [line.get("told") for line in lines_of(tmp_path / "log")[1:]] == ["update_engines", "add", "make_ready"]


def test_an_error_is_part_of_what_comes_out(tmp_path: Path) -> None:
    core = LoggedCore(QUICK, 1, DecisionLog(tmp_path / "log", 10**9))
    with pytest.raises(KeyError):
        core.add({"id": "0-r-a"}, Arrival("acme", "batch", 1), 1, RequestState.READY, 0.0)
    assert lines_of(tmp_path / "log")[-1]["raised"] == "KeyError"
    assert replay(tmp_path / "log").difference is None


def test_a_cut_line_and_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    random_telling(LoggedCore(QUICK, 1, DecisionLog(path, 10**9)), random.Random(3), 50)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert replay(path).is_cut
    assert main([str(path)]) == 0
    assert "the last line is cut off" in capsys.readouterr().out
    path.write_bytes(whole.replace(b'"told":"decide"', b'"told":"decidedly"', 1))
    with pytest.raises(ConfigError, match="'decidedly', which this version does not know"):
        replay(path)
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match=r"line 1 of .* is no line of a decision log"):
        replay(path)
    assert main([str(path)]) == main([str(tmp_path / "none")]) == 2


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    random_telling(LoggedCore(QUICK, 1, DecisionLog(path, 10**9)), random.Random(3), 300)
    assert main([str(path)]) == 0
    assert "placements come out the same" in capsys.readouterr().out
    lines = lines_of(path)
    at = next(i for i, line in enumerate(lines) if line.get("told") == "decide")
    lines[at]["gave"]["has"]["more"] = True
    write_lines(path, lines)
    assert main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(f"line {at + 1}: `decide` comes out otherwise") == 1
