"""``python -m parrot_workers``: options, errors in one line, signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.reader import engines
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.worker.factory import engine_factory, spare_cores
from parrot_workers.worker.options import DEMO_FOLDER, parse_options
from parrot_workers.worker.process import main

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``python -m parrot_workers``; killed at the end if it still runs."""
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "workers"))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "parrot_workers", *arguments),
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            child.send_signal(signal.SIGCONT)
        await child.communicate()


async def ended(child: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Wait for its end; return its status and what it wrote to standard error."""
    async with asyncio.timeout(60):
        _, err = await child.communicate()
    return child.returncode, err.decode()


@pytest.mark.redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_registers_serves_and_ends(real_desk: Any, redis_url: str, number: signal.Signals) -> None:
    async with process("--kind", "sim", "--name", "tiny", "--instant", "--redis-url", redis_url) as child:
        engine = await real_desk.engine()
        assert engine.id.startswith("tiny-")
        assert (engine.model, engine.kind, engine.pid) == ("tiny", "sim", child.pid)
        asked = await real_desk.ask("echo:hello", dispatch_to=engine.id)
        assert await real_desk.value(asked) == "hello"
        child.send_signal(number)
        status, err = await ended(child)
        assert status == 0, err
        assert "Traceback" not in err
        assert await real_desk.reader.engine(engine.id) is None


@pytest.mark.redis
async def test_a_second_signal_gives_back_at_once_what_runs(real_desk: Any, redis_url: str) -> None:
    slow = '{"decode_base_ms": 50}'
    async with process("--kind", "sim", "--cost", slow, "--redis-url", redis_url) as child:
        engine = await real_desk.engine()
        asked = await real_desk.ask("Tell", sampling={"max_tokens": 100_000 // 4}, dispatch_to=engine.id)
        await real_desk.until(asked, "running")
        child.send_signal(signal.SIGTERM)
        await real_desk.engine_state(engine.id, "draining")
        child.send_signal(signal.SIGTERM)
        status, err = await ended(child)
        assert status == 0, err
        record = await real_desk.request(asked)
        assert (record.state, record.attempt) == ("ready", 0)


@pytest.mark.redis
async def test_a_suspended_process_is_replaced_and_fenced_out_when_it_wakes_up(
    real_desk: Any, redis_url: str, short: StoreSettings, working: Any, open_real: Any, eventually: Any
) -> None:
    environment = {"PARROT_MQ_LEASE_S": str(short.lease_s), "PARROT_MQ_HEARTBEAT_TTL_S": str(short.heartbeat_ttl_s)}
    slow = '{"decode_base_ms": 200}'
    async with process("--kind", "sim", "--cost", slow, "--redis-url", redis_url, **environment) as child:
        former = (await real_desk.engine()).id
        asked = await real_desk.ask("echo:a b c d e", dispatch_to=former)
        await real_desk.until(asked, "running")
        child.send_signal(signal.SIGSTOP)

        async def reaped() -> bool:
            return bool(await real_desk.scheduler.reap_engine(former, [asked.request]) == (True, False))

        await eventually(reaped)
        assert (await real_desk.request(asked)).state == "ready"
        async with working(open_real, store=short) as worker:
            await real_desk.dispatch(asked, worker.engine_id)
            assert await real_desk.value(asked) == "a b c d e"
        child.send_signal(signal.SIGCONT)
        again = await real_desk.engine(lambda record: record.id != former)
        assert again.pid == child.pid
        other = await real_desk.ask("echo:back", dispatch_to=again.id)
        assert await real_desk.value(other) == "back"
        record = await real_desk.request(asked)
        assert (record.state, record.attempt, record.engine) == ("done", 2, worker.engine_id)
        child.terminate()
        status, err = await ended(child)
        assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/folder"], "error: --model /no/such/folder: there is no folder /no/such/folder; give"),
        (["--kind", "sim", "--name", "a b"], "error: 'a b' cannot be a model's name"),
        (["--kind", "sim", "--cost", "{"], "error: --cost '{' is no JSON object"),
        (
            ["--kind", "sim", "--cost", '{"shared_saving": 2}'],
            "error: --cost '{\"shared_saving\": 2}' is no JSON object",
        ),
        (["--kind", "sim", "--redis-url", "http://x"], "error: 'http://x' is not a Redis URL"),
    ],
)
def test_a_wrong_start_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], switch_interval: None
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(message)


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str], switch_interval: None) -> None:
    assert main(["--model", "/no/such/folder", "--verbose"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: --model /no/such/folder")


def test_without_redis_status_1(capsys: pytest.CaptureFixture[str], switch_interval: None) -> None:
    assert main(["--kind", "sim", "--redis-url", "redis://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("error: no Redis answers at redis://127.0.0.1:1")


@pytest.fixture
def switch_interval() -> Any:
    """Put the interpreter's setting back."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("arguments", "model", "name"),
    [
        (["--kind", "sim"], "sim", "sim"),
        (["--engine", "sim", "--model", "llama"], "llama", "llama"),
        (["--kind", "sim", "--model", "meta/llama-3"], "meta/llama-3", "llama-3"),
        (["--model", "meta/llama-3", "--name", "mine"], "meta/llama-3", "mine"),
        (["--model", "demo"], str(DEMO_FOLDER), "demo"),
        ([], str(DEMO_FOLDER), "demo"),
        (["--model", str(DEMO_FOLDER)], str(DEMO_FOLDER), "demo_model"),
        (["--model", str(DEMO_FOLDER), "--name", "d"], str(DEMO_FOLDER), "d"),
    ],
)
def test_models_and_their_names(arguments: list[str], model: str, name: str) -> None:
    options = parse_options(arguments)
    assert (options.model, options.name) == (model, name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        parse_options(["--model", str(tmp_path)])


def test_options_of_a_simulated_engine() -> None:
    cost = '{"decode_base_ms": 1, "prefill_per_pair_ms": 0.001, "shared_saving": 0.5}'
    options = parse_options(["--kind", "sim", "--cost", cost, "--instant", "--max-num-seqs", "3"])
    assert options.cost == CostModel(decode_base_ms=1.0, prefill_per_pair_ms=0.001, shared_saving=0.5)
    assert (options.instant, options.max_num_seqs) == (True, 3)


def test_an_option_that_makes_no_sense_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_options(["--max-num-seqs", "0"])
    assert raised.value.code == 2
    assert "0 is not positive" in capsys.readouterr().err


async def test_the_sim_engine_needs_no_torch(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    path = os.pathsep.join([str(tmp_path), *(str(ROOT / part) for part in ("", "kernels", "workers"))])
    async with process("--kind", "sim", "--redis-url", redis_url, PYTHONPATH=path) as child:
        store: Store = await connect(redis_url)
        async with store, asyncio.timeout(30):
            while not any((await engines(store)).values()):
                assert child.returncode is None, await ended(child)
                await asyncio.sleep(0.02)
        child.terminate()
        status, err = await ended(child)
        assert (status, "torch was imported" in err) == (0, False)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--host-kv-memory-gib", "0.25"], {"host_kv_memory_bytes": 2**28}),
        (["--tensor-parallel-size", "2"], {"tensor_parallel_size": 2}),
        (["--kv-dtype", "fp8", "--memory-share", "0.7"], {"kv_dtype": "fp8", "memory_share": 0.7}),
    ],
    ids=["host tier", "two ranks", "cache"],
)
def test_a_torch_engine_gets_its_options(
    monkeypatch: pytest.MonkeyPatch, more: list[str], wanted: dict[str, Any]
) -> None:
    made: list[EngineSettings] = []

    class Stub:
        def __init__(self, settings: EngineSettings, *, on_step: object) -> None:
            made.append(settings)

    module: Any = types.ModuleType("engine")
    module.Engine = Stub
    monkeypatch.setitem(sys.modules, "parrot_workers.engine.engine", module)
    arguments = [
        "--model",
        "org/m",
        "--device",
        "cpu",
        "--kv-memory-gib",
        "0.5",
        "--max-num-seqs",
        "4",
        "--no-calibrate",
        "--no-speculate",
        "--profile",
        "traces",
        *more,
    ]
    engine_factory(parse_options(arguments))()
    assert made == [
        EngineSettings(
            "org/m",
            name="m",
            device="cpu",
            calibrate=False,
            speculate=False,
            profile="traces",
            kv_memory_bytes=2**29,
            max_num_seqs=4,
            num_threads=spare_cores(),
            **wanted,
        )
    ]
    assert 1 <= spare_cores() < max(2, os.cpu_count() or 1)


def test_without_torch_the_kind_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs torch and transformers: pip install 'parrot-mq\[worker\]'"):
        engine_factory(parse_options(["--model", "org/m"]))
