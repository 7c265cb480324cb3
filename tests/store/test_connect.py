"""Connecting, ids, and answers that are no errors of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from parrot_mq.errors import BadType, ConfigError, StoreError, StoreUnavailable
from parrot_mq.keys import Keys, make_id, partition_of, session_partition
from parrot_mq.settings import StoreSettings
from parrot_mq.store import SeededIds, Store, SystemIds, connect
from parrot_mq.store.address import masked
from parrot_mq.store.answers import checked, unknown_variable
from parrot_mq.store.connect import make_client
from parrot_mq.store.server import RedisServer


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "", "redis://a:b", "redis://[::1", "redis://?db=x"]
)
async def test_what_is_no_redis_url(url: str) -> None:
    with pytest.raises(ConfigError, match="not a Redis URL"):
        await connect(url)


async def test_nothing_answers() -> None:
    with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1.*--redis-url"):
        await connect("redis://127.0.0.1:1", timeout_s=0.2)


@pytest.mark.redis
async def test_what_the_server_refuses(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("requirepass", "secret")
        address = f"127.0.0.1:{server.port}"
        refused = {
            f"redis://{address}": "refuses the login",
            f"redis://:wrong@{address}": rf"redis://:\*\*\*@{address} refuses the login",
            f"redis://:secret@{address}/99": "cannot be used as .*/99",
            f"redis://:secret@{address}?colour=red": "cannot be used as .*colour",
        }
        for url, message in refused.items():
            with pytest.raises(ConfigError, match=message):
                await connect(url)
        async with await connect(f"redis://:secret@{address}") as store:
            assert await store.client.ping()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost", "redis://:***@localhost"),
        ("rediss://ann:se:c@ret@h:1/2?a=b", "rediss://ann:***@h:1/2?a=b"),
        ("unix://ann:secret@/tmp/a.sock", "unix://ann:***@/tmp/a.sock"),
        ("redis://ann@localhost:1", "redis://ann@localhost:1"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.redis
async def test_a_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with RedisServer(tmp_path, options=["--unixsocket", str(socket)]):
        async with await connect(f"unix://{socket}?db=2", StoreSettings(partitions=2)) as store:
            await store.client.set("a", "b")
            assert await store.partition(1).redis.get("a") == "b"
            assert (await store.client.client_info())["db"] == 2
    with pytest.raises(StoreUnavailable, match=re.escape(str(socket))):
        await connect(f"unix://{socket}", timeout_s=0.2)


@pytest.mark.redis
async def test_a_cluster_behind_a_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    node = RedisServer(tmp_path, options=["--unixsocket", str(socket), "--cluster-enabled", "yes"])
    with node, pytest.raises(ConfigError, match="TCP"):
        await connect(f"unix://{socket}")


async def test_ids_lead_to_their_partition(fakes: object) -> None:
    async with await fakes(StoreSettings(partitions=3)) as store:  # type: ignore[operator]
        assert isinstance(store, Store)
        assert store.of("2-v-abc").keys == Keys(2)
        assert store.of("2-v-abc", "v") is store.partition(2)
        with pytest.raises(BadType, match="of a variable, not of a request"):
            store.of("2-v-abc", "r")
        for number in (3, -1):
            with pytest.raises(ConfigError, match="PARROT_MQ_PARTITIONS"):
                store.partition(number)


@pytest.mark.parametrize("bad", ["", "0-v-", "0-x-abc", "a-v-abc", "0v", None, 5])
def test_what_is_no_id(bad: object) -> None:
    with pytest.raises(BadType, match="not an id"):
        partition_of(bad)  # type: ignore[arg-type]


def test_sessions_spread_over_partitions() -> None:
    ids = SeededIds(7)
    found = {session_partition(ids.token(), 4) for _ in range(100)}
    assert found == {0, 1, 2, 3}
    assert session_partition("123456789", 16384) == 0x31C3  # CRC-16/XMODEM, as Redis Cluster counts slots


def test_tokens() -> None:
    assert [SeededIds(3).token() for _ in range(2)] == [SeededIds(3).token()] * 2
    tokens = {source.token() for source in (SystemIds(), SeededIds(1)) for _ in range(50)}
    assert len(tokens) == 100
    assert all(re.fullmatch("[0-9a-v]{16}", token) for token in tokens)
    assert partition_of(make_id(3, "v", "a-b")) == 3


async def test_time_outs_and_pool_are_stated() -> None:
    client = make_client("redis://127.0.0.1:1")
    options = client.get_connection_kwargs()
    assert "socket_timeout" in options
    assert options["socket_timeout"] is None
    assert options["protocol"] == 2
    assert client.connection_pool.max_connections == 128
    await client.aclose()


def test_an_answer_of_a_kind_that_nobody_knows() -> None:
    assert checked(["ok", 1, 2]) == [1, 2]
    with pytest.raises(StoreError, match=r"Strange: why \(who\)"):
        checked(["error", "Strange", "who", "why", "0"])


def test_the_error_for_an_unknown_id_says_what_to_do() -> None:
    error = unknown_variable("0-v-a")
    assert error.culprit == "0-v-a"
    assert "published()" in str(error)
