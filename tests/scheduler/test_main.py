"""``python -m parrot_mq.scheduler``: how the process begins and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
import redis

from parrot_mq.entry import FAILED, USAGE
from parrot_mq.keys import LEADER
from parrot_mq.scheduler.__main__ import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.redis
def test_it_leads_until_sigterm(redis_url: str) -> None:
    pid = os.getpid()

    def end_it_once_it_leads() -> None:
        with redis.Redis.from_url(redis_url) as client:
            while not client.exists(LEADER):
                pass
        os.kill(pid, signal.SIGTERM)

    watching = threading.Thread(target=end_it_once_it_leads)
    watching.start()
    assert main(["--redis-url", redis_url]) == 0
    watching.join(10)
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LEADER)


def test_without_a_redis_it_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARROT_MQ_REDIS_URL", raising=False)
    assert main([]) == USAGE
    assert capsys.readouterr().err.startswith("error: no Redis: (1)")


def test_a_redis_that_does_not_answer_is_a_failure(capsys: Capture) -> None:
    assert main(["--redis-url", "redis://127.0.0.1:1", "--verbose"]) == FAILED
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "error: no Redis answers at redis://127.0.0.1:1" in text


def test_an_unexpected_error_says_what_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(coroutine: object) -> None:
        coroutine.close()  # type: ignore[attr-defined]
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(asyncio, "run", fail)
    assert main(["--redis-url", "redis://x"]) == FAILED
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero\n"
