"""How the command begins and ends: the install line, usage, errors as one line, tracebacks on demand."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable

import pytest
from rich.text import Text

from parrot_mq.cli import app as app_module
from parrot_mq.cli import main
from parrot_mq.cli.console import existing_redis, literal, require
from parrot_mq.errors import ConfigError

Capture = pytest.CaptureFixture[str]


def failing(error: BaseException) -> Callable[..., int]:
    def run(*_: object, **__: object) -> int:
        raise error

    return run


def test_without_the_extra_it_prints_the_install_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else find_spec(name))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "parrot-mq needs typer: pip install 'parrot-mq[cli]'\n"


def test_help_names_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("up", "scheduler", "engine", "bench-engine", "simulate", "demo", "show", "doctor"):
        assert f" {command} " in text


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"parrot-mq {importlib.metadata.version('parrot-mq')}\n"


def test_a_wrong_command_is_a_usage_error(capsys: Capture) -> None:
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_an_error_is_one_line_and_verbose_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(app_module, "app", failing(ConfigError("give [this] another value")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: give [this] another value\n"
    assert main(["doctor", "--verbose"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("error: give [this] another value\n")


def test_an_unexpected_error_is_a_line_too(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(app_module, "app", failing(ZeroDivisionError("division by zero")))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "error: unexpected ZeroDivisionError: division by zero (--verbose shows where)\n"


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(app_module, "app", failing(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["parrot-mq", "show", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("parrot_mq", run_name="__main__")
    assert "engines" in capsys.readouterr().out


def test_scheduler_engine_bench_and_simulate_become_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, command: became.append(command[1:]))
    assert main(["scheduler", "--redis-url", "redis://x"]) == 0
    assert main(["engine", "--kind", "sim", "--verbose", "--help"]) == 0
    assert main(["bench-engine", "--json", "--verbose"]) == 0
    assert main(["simulate", "chat", "--engines", "1-2"]) == 0
    assert became == [
        ["-m", "parrot_mq.scheduler", "--redis-url", "redis://x"],
        ["-m", "parrot_workers", "--kind", "sim", "--verbose", "--help"],
        ["-m", "parrot_workers.bench", "--json", "--verbose"],
        ["-m", "parrot_workers.simulation", "chat", "--engines", "1-2"],
    ]


def test_text_of_others_neither_styles_nor_commands_the_terminal() -> None:
    assert (
        Text.from_markup(literal("[bold]a[/]\n\x1b[31mb\x07\t\u00e9")).plain == "[bold]a[/]\n\ufffd[31mb\ufffd\t\u00e9"
    )


def test_what_is_not_installed_is_named_with_its_extra() -> None:
    require("json", "worker")
    with pytest.raises(ConfigError, match=r"no_such_module is not installed: pip install 'parrot-mq\[worker\]'"):
        require("no_such_module", "worker")


def test_without_any_redis_the_ways_are_listed(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARROT_MQ_REDIS_URL", raising=False)
    with pytest.raises(ConfigError, match="parrot-mq up"):
        existing_redis(None)
    assert existing_redis("redis://x") == "redis://x"
