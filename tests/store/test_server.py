"""The private Redis: found, started with persistence on, alone in its folder, gone with its parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from parrot_mq.errors import ConfigError, StoreUnavailable
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Store, connect
from parrot_mq.store import server as server_module
from parrot_mq.store.program import embedded_server, find_server
from parrot_mq.store.resolve import resolve_redis
from parrot_mq.store.server import RedisServer, known_url, running_url
from parrot_mq.store.tether import main as tether_main
from parrot_mq.store.tether import tethered

pytestmark = pytest.mark.redis


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_persistence_is_on_and_nothing_is_evicted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        for name, value in {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}.items():
            assert client.config_get(name) == {name: value}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.config_get("dir") == {"dir": str(tmp_path)}


def test_an_acknowledged_write_survives_a_kill(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        url = server.url
        with redis.Redis.from_url(url, decode_responses=True) as client:
            client.set("kept", "yes")
        server.kill()
        server.start()
        assert server.url == url
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.get("kept") == "yes"


async def test_as_an_asynchronous_context_manager(tmp_path: Path) -> None:
    async with RedisServer(tmp_path) as server:
        pid = server.pid
        async with await connect(server.url, StoreSettings()) as store:
            assert await store.client.ping()
    assert not alive(pid)
    server.stop()  # harmless the second time


def test_stopped_server_has_no_pid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not been started"):
        _ = RedisServer(tmp_path).pid


def test_one_server_a_folder(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, pytest.raises(ConfigError, match=f"--redis-url {server.url}"):
        RedisServer(tmp_path).start()
    with RedisServer(tmp_path):  # free again
        pass


def test_running_url_is_known_only_while_it_runs(tmp_path: Path) -> None:
    assert running_url(tmp_path / "nothing") is None
    with RedisServer(tmp_path) as server:
        assert running_url(tmp_path) == server.url
    assert running_url(tmp_path) is None


async def test_resolve_prefers_the_argument_then_the_environment_then_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARROT_MQ_REDIS_URL", "redis://from-environment")
    assert known_url("redis://given", tmp_path) == "redis://given"
    assert known_url(None, tmp_path) == "redis://from-environment"
    monkeypatch.delenv("PARROT_MQ_REDIS_URL")
    assert known_url(None, tmp_path) is None
    async with resolve_redis(None, tmp_path) as started:
        async with resolve_redis(None, tmp_path) as found:
            assert found == started
        assert running_url(tmp_path) == started  # the inner one did not stop what it did not start
    assert running_url(tmp_path) is None


async def test_the_port_stays_so_an_exported_address_starts_the_server_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with resolve_redis(None, tmp_path / "mine") as url:
        pass
    monkeypatch.setenv("PARROT_MQ_REDIS_URL", url)
    events: list[str] = []
    async with resolve_redis(None, tmp_path / "mine", events.append) as again:
        assert again == url == running_url(tmp_path / "mine")
        async with resolve_redis(None, tmp_path / "other", events.append) as used:
            assert used == url
            assert running_url(tmp_path / "other") is None
    assert [event.removeprefix(url).split(",")[0] for event in events] == [" started for this folder", " is used"]
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with RedisServer(tmp_path / "third", port=port), RedisServer(tmp_path / "mine") as moved:
        assert moved.port != port


async def test_without_any_server_the_error_lists_the_three_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARROT_MQ_REDIS_URL", raising=False)
    monkeypatch.setattr(server_module, "find_server", lambda: None)
    with pytest.raises(ConfigError) as caught:
        async with resolve_redis(None, tmp_path):
            pass
    for way in ("--redis-url", "redis-server", "valkey-server", "parrot-mq[embedded]"):
        assert way in str(caught.value)


def test_programs_are_looked_for_on_path_and_then_in_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    embedded = embedded_server()
    assert embedded is not None
    assert find_server() == embedded
    for name in ("valkey-server", "redis-server"):  # each next one is preferred
        (tmp_path / name).touch(mode=0o755)
        assert find_server() == tmp_path / name
    assert embedded_server("no-such-wheel") is None
    assert embedded_server("pytest") is None


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"ended with 1: .*[Ff]atal|ended with 1: no log"):
        RedisServer(tmp_path, options=["--no-such-option", "1"]).start()
    with pytest.raises(StoreUnavailable, match="ended with 1"):
        RedisServer(tmp_path, program=tmp_path / "missing").start()


def test_a_port_that_is_taken_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "first") as first, pytest.raises(StoreUnavailable, match="Address already in use"):
        RedisServer(tmp_path / "second", port=first.port).start()


async def test_another_free_port_is_tried_when_one_is_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = server_module._free_port
    with RedisServer(tmp_path / "first") as first:
        ports = [first.port, free_port()]
        monkeypatch.setattr(server_module, "_free_port", lambda preferred: ports.pop(0))
        async with RedisServer(tmp_path / "second") as second:
            assert second.port != first.port
        ports = [first.port, free_port()]
        with RedisServer(tmp_path / "second") as second:
            assert second.port != first.port


async def test_the_server_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from parrot_mq.store.server import RedisServer\n"
        "server = RedisServer(sys.argv[1]); server.start(); print(server.pid, flush=True); time.sleep(60)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(20):
        while alive(pid):  # noqa: ASYNC110 (another process's life has no event)
            await asyncio.sleep(0.02)


def test_tether_gives_up_without_its_parent_and_says_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.run([*tethered(["true"])[:4], "1", "true"], check=False)
    assert gone.returncode == 1
    ran = subprocess.run(tethered(["no-such-program"]), capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "cannot run no-such-program" in ran.stderr
    assert subprocess.run(tethered(["sh", "-c", "exit 7"]), check=False).returncode == 7
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tethered(["true"]) == ["true"]


class FakeLibc:
    """Takes down what it is asked for; ``answer`` is what the call returns."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list[tuple[int, ...]] = []

    def prctl(self, *arguments: int) -> int:
        self.asked.append(arguments)
        return self.answer


def test_tether_asks_the_kernel_and_becomes_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    libc = FakeLibc(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)  # this process is not to get the wish itself
    monkeypatch.setattr(os, "execvp", lambda _file, arguments: became.append(arguments))
    tether_main([str(os.getppid()), "true", "x"])
    assert became == [["true", "x"]]
    assert libc.asked == [(1, signal.SIGTERM, 0, 0, 0)]
    with pytest.raises(SystemExit, match="1"):
        tether_main(["1" if os.getppid() != 1 else "2", "true"])
    libc.answer = -1
    with pytest.raises(SystemExit, match="prctl failed"):
        tether_main([str(os.getppid()), "true"])


async def test_every_kind_of_server_answers(any_store: Store) -> None:
    assert await any_store.client.ping()
    assert await any_store.client.dbsize() == 0


async def test_the_kinds_are_what_they_say(redis_servers: Callable[[str], str]) -> None:
    versions = {}
    for kind in ("redis", "valkey", "redis-6.2"):
        with redis.Redis.from_url(redis_servers(kind), decode_responses=True) as client:
            versions[kind] = client.info("server")
    assert versions["redis-6.2"]["redis_version"].startswith("6.2.")
    assert versions["valkey"]["server_name"] == "valkey"
    assert int(versions["redis"]["redis_version"].split(".")[0]) >= 7


async def test_a_cluster_of_two_masters_holds_two_partitions(cluster_urls: list[str]) -> None:
    async with await connect(cluster_urls[0], StoreSettings(partitions=4)) as store:
        ports = {partition.redis.connection_pool.connection_kwargs["port"] for partition in store.partitions}
        assert len(ports) == 2
        for partition in store.partitions:
            await partition.redis.set(partition.keys.epoch, 1)
