"""Commands as bytes: the same whoever packs them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

from parrot_mq.store.connect import make_client
from parrot_mq.store.pool import pack

ARGUMENTS = st.lists(st.one_of(st.text(), st.binary(), st.integers()), max_size=20)


@given(ARGUMENTS)
def test_a_packed_command_is_what_redis_py_makes_of_it(args: list[Any]) -> None:
    usual = b"".join(bytes(part) for part in Connection().pack_command("EVALSHA", *args))
    ours = make_client("redis://localhost").connection_pool.make_connection()
    assert pack(("EVALSHA", *args)) == usual
    assert b"".join(ours.pack_command("EVALSHA", *args)) == usual


def test_a_command_of_two_words_is_packed_as_two() -> None:
    ours = make_client("redis://localhost").connection_pool.make_connection()
    assert b"".join(ours.pack_command("SCRIPT LOAD", "return 1")) == pack(("SCRIPT", "LOAD", "return 1"))


@pytest.mark.parametrize(
    ("url", "kind"),
    [("redis://h", Connection), ("rediss://h", SSLConnection), ("unix:///s", UnixDomainSocketConnection)],
)
def test_every_kind_of_address_gets_its_kind_of_connection(url: str, kind: type) -> None:
    assert isinstance(make_client(url).connection_pool.make_connection(), kind)


@pytest.mark.redis
async def test_a_connection_that_the_server_has_closed_is_not_used_again(redis_url: str) -> None:
    client, other = make_client(redis_url), make_client(redis_url)
    async with client, other:
        number = await client.client_id()
        (connection,) = client.connection_pool._available_connections
        assert not connection.is_lost
        assert await other.client_kill_filter(_id=str(number)) == 1
        for _ in range(500):
            if connection.is_lost:
                break
            await asyncio.sleep(0.01)
        assert connection.is_lost
        assert await client.client_id() != number
        assert not connection.is_lost
