"""``parrot-mq doctor``: every finding has a way to get what is missing; health checks answer by their status."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import socket
from pathlib import Path

import pytest
import redis

from parrot_mq.cli import doctor, main
from parrot_mq.cli.doctor import Finding, python_findings, redis_findings, tool_findings
from parrot_mq.keys import ENGINES, LEADER, Keys
from parrot_mq.messages import EngineRecord, EngineState
from parrot_mq.store import Store
from parrot_mq.store.engine import register

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Redis is known but those a test names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARROT_MQ_REDIS_URL", raising=False)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without_torch(name: str) -> str:
        if name in ("torch", "orjson"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_torch)
    found = {finding.subject: finding for finding in python_findings()}
    assert found["torch"] == Finding("torch", "not installed", "pip install 'parrot-mq[worker]'", needed=False)
    assert found["orjson"].needed
    assert found["pydantic"].remedy == ""


def test_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "find_server", lambda: None)
    compiler, server = tool_findings()
    assert compiler.remedy == "apt-get install g++"
    assert "parrot-mq[embedded]" in server.remedy
    monkeypatch.undo()
    assert tool_findings()[1].remedy == ""


async def test_no_redis_and_one_that_does_not_answer() -> None:
    (nothing,) = await redis_findings(None)
    assert (nothing.found, nothing.needed) == ("none", False)
    (silent,) = await redis_findings("redis://127.0.0.1:1")
    assert silent.needed
    assert "no Redis answers" in silent.remedy


@pytest.mark.redis
async def test_redis_and_who_works_on_it(store: Store, redis_url: str) -> None:
    async def findings() -> dict[str, Finding]:
        return {finding.subject: finding for finding in await redis_findings(redis_url)}

    found = await findings()
    for subject in ("Redis in use", "Redis persistence", "Redis eviction"):
        assert found[subject].remedy == "", found
    assert found["scheduler"].remedy == "parrot-mq scheduler"
    assert found["engines"].remedy == "parrot-mq engine"
    await store.client.set(LEADER, "scheduler-x")
    await register(store, EngineRecord("e", "sim", "tiny", EngineState.READY))
    found = await findings()
    assert found["scheduler"].found == "scheduler-x leads"
    assert found["engines"].found == "1 ready: tiny"


@pytest.mark.redis
async def test_a_redis_that_may_lose_work(store: Store, redis_url: str) -> None:
    await store.client.config_set("maxmemory-policy", "allkeys-lru")
    await store.client.config_set("appendonly", "no")
    try:
        found = {finding.subject: finding for finding in await redis_findings(redis_url)}
    finally:
        await store.client.config_set("maxmemory-policy", "noeviction")
        await store.client.config_set("appendonly", "yes")
    assert "appendonly yes" in found["Redis persistence"].remedy
    assert "noeviction" in found["Redis eviction"].remedy


@pytest.mark.redis
def test_health_checks_answer_by_their_status(redis_url: str, capsys: Capture) -> None:
    here = EngineRecord("e", "sim", "tiny", EngineState.READY, host=socket.gethostname())
    with redis.Redis.from_url(redis_url) as client:
        assert main(["doctor", "--scheduler", "--redis-url", redis_url]) == 1
        assert "no scheduler leads" in capsys.readouterr().err
        client.set(LEADER, "scheduler-x")
        assert main(["doctor", "--scheduler", "--redis-url", redis_url]) == 0
        for record, status in (
            (dataclasses.replace(here, host="elsewhere"), 1),
            (dataclasses.replace(here, state=EngineState.STARTING), 1),
            (here, 0),
        ):
            client.zadd(ENGINES, {"e": 1})
            client.hset(Keys(0).engine("e"), mapping=record.to_fields())
            assert main(["doctor", "--engine", "--redis-url", redis_url]) == status
    assert capsys.readouterr().out == ""


def test_the_table_and_its_status(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    assert "pydantic" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "python_findings", lambda: [Finding("orjson", "not installed", "pip", needed=True)])
    assert main(["doctor"]) == 1
    assert "missing" in capsys.readouterr().out
