"""`RedisStore.open`: what no waiting heals it says so, and after a failure it can be tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from redis import exceptions
from redis.asyncio import Redis

from shadowcat_stores import StoreUnavailable, StoreUnusable
from shadowcat_stores._redis.errors import not_opened
from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import new_session
from tests.support.redis import RedisServer, redis_cluster, redis_server, relay, until
from tests.support.tls import server_context


async def fails_to_open(store: RedisStore) -> StoreUnavailable:
    """Return what `open` raises, which leaves nothing behind."""
    before = asyncio.all_tasks()
    with pytest.raises(StoreUnavailable) as raised:
        await store.open()
    left = asyncio.all_tasks() - before
    assert [task for task in left if "tests/support" not in repr(task)] == []
    assert store.is_open is False
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.ping()
    return raised.value


def others(client: redis_py.Redis) -> int:
    """Return how many connections the server has besides the one that asks."""
    return len(client.client_list()) - 1


# -- again --------------------------------------------------------------------------------------------


@contextmanager
def one_server() -> Iterator[tuple[str, Callable[[], None]]]:
    """A server that can be started, and its URL."""
    server = RedisServer()
    try:
        yield server.url, server.start
    finally:
        server.remove()


@contextmanager
def sentinel_of_one() -> Iterator[tuple[str, Callable[[], None]]]:
    with ExitStack() as stack:
        server = RedisServer()
        stack.callback(server.remove)
        watch = f"sentinel monitor mymaster 127.0.0.1 {server.port} 1"
        sentinel = stack.enter_context(redis_server(watch, mode="--sentinel"))
        yield f"redis+sentinel://{sentinel.address}/mymaster", server.start


@contextmanager
def cluster_that_lost_its_nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    with redis_cluster(1) as (node,):
        node.kill()

        def start() -> None:
            node.start()
            with node.client() as client:
                while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                    client.wait(1, 20)

        yield f"redis+cluster://{node.address}", start


@pytest.mark.parametrize("place", [one_server, sentinel_of_one, cluster_that_lost_its_nodes])
async def test_it_opens_once_the_server_is_there(place: Any, clock: FakeClock) -> None:
    with place() as (url, start):
        store = RedisStore(url, clock=clock, timeout=1.0)
        for _ in range(2):
            error = await fails_to_open(store)
            assert type(error) is StoreUnavailable
            assert "see whether it runs" in str(error)
        start()
        async with store:
            await store.create_session(new_session(clock))
            assert await store.count_sessions() == 1


async def test_with_a_client_passed_in_it_opens_once_the_server_is_there(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with Redis(port=own_redis.port) as client:
        store = RedisStore(client, timeout=1.0)
        assert type(await fails_to_open(store)) is StoreUnavailable
        own_redis.start()
        async with store:
            await store.ping()
        assert await client.ping()


@pytest.mark.parametrize("refused_by", ["hanging", "replica", "memory"])
async def test_what_may_heal_is_unavailable_and_opens_when_it_has(
    own_redis: RedisServer, refused_by: str
) -> None:
    store = RedisStore(own_redis.url, timeout=0.2)
    with own_redis.client() as client:
        if refused_by == "hanging":
            own_redis.pause()
        elif refused_by == "replica":
            client.replicaof("127.0.0.1", "1")
        else:
            client.config_set("maxmemory", "1mb")
        assert type(await fails_to_open(store)) is StoreUnavailable
        own_redis.resume()
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", "0")
        await until(lambda: not others(client))  # It hears of the end a moment later.
        async with store:
            assert others(client) == 1


# -- what no waiting heals ----------------------------------------------------------------------------


async def test_credentials_that_are_missing_or_wrong_are_said_to_be() -> None:
    with redis_server() as server, server.client() as client:
        client.config_set("requirepass", "right")
        for credentials in ("", ":wrong@", "me:right@"):
            error = await fails_to_open(RedisStore(f"redis://{credentials}{server.address}"))
            assert isinstance(error, StoreUnusable)
            assert "mend the user name and password" in str(error)
            assert "wrong" not in str(error)
        await until(lambda: not others(client))  # It hears of the end a moment later.
        store = RedisStore(f"redis://:right@{server.address}")
        client.config_set("requirepass", "changed")
        assert isinstance(await fails_to_open(store), StoreUnusable)
        client.config_set("requirepass", "right")
        async with store:
            await store.ping()


async def test_a_cluster_that_wants_other_credentials_says_so(own_redis: RedisServer) -> None:
    with redis_cluster(1) as (node,), node.client() as client:
        client.config_set("requirepass", "right")
        error = await fails_to_open(RedisStore(f"redis+cluster://:wrong@{node.address}"))
        assert isinstance(error, StoreUnusable)
        assert "mend the user name and password" in str(error)
        async with RedisStore(f"redis+cluster://:right@{node.address}") as store:
            await store.ping()


async def test_sentinels_that_want_other_credentials_say_so(own_redis: RedisServer) -> None:
    watch = f"sentinel monitor mymaster 127.0.0.1 {own_redis.port} 1"
    with redis_server(watch, mode="--sentinel") as sentinel, sentinel.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">right")
        address = f"{sentinel.address}/mymaster"
        for url in (f"redis+sentinel://{address}", f"redis+sentinel://{address}?sentinel_password=wrong"):
            error = await fails_to_open(RedisStore(url))
            assert isinstance(error, StoreUnusable)
            assert "mend sentinel_username and sentinel_password" in str(error)
        # One that cannot be reached may know better.
        also = RedisStore(f"redis+sentinel://127.0.0.1:1,{address}")
        assert type(await fails_to_open(also)) is StoreUnavailable
        async with RedisStore(f"redis+sentinel://{address}?sentinel_password=right") as store:
            await store.ping()


async def test_an_acl_that_forbids_what_is_needed_is_said_to(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        rules = ["on", ">p", "~shadowcat:*", "+@read", "+@connection"]
        client.execute_command("ACL", "SETUSER", "reader", *rules)
    error = await fails_to_open(RedisStore(f"redis://reader:p@{own_redis.address}"))
    assert isinstance(error, StoreUnusable)
    assert "ACL" in str(error)


async def test_a_server_that_does_not_say_what_it_is_is_used(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "me", "on", ">p", "~*", "&*", "+@all", "-info")
    async with RedisStore(f"redis://me:p@{own_redis.address}") as store:
        await store.ping()


async def test_a_certificate_that_is_not_trusted_is_said_to_be(redis: RedisServer, tmp_path: Path) -> None:
    context, known_by = server_context(tmp_path)
    async with relay(redis, context) as network:
        for url in (
            f"rediss://localhost:{network.port}",
            f"rediss://127.0.0.1:{network.port}?ssl_ca_certs={known_by}",
            f"rediss+cluster://localhost:{network.port}",
        ):
            error = await fails_to_open(RedisStore(url))
            assert isinstance(error, StoreUnusable)
            assert "see ssl_ca_certs" in str(error)
        async with RedisStore(f"rediss://localhost:{network.port}?ssl_ca_certs={known_by}") as store:
            await store.ping()


async def test_a_server_that_is_too_old_is_said_to_be(redis: RedisServer) -> None:
    async with relay(redis) as network:
        store = RedisStore(f"redis://127.0.0.1:{network.port}")
        network.alters = (b"redis_version:7.2.4", b"redis_version:6.0.9")
        error = await fails_to_open(store)
        assert isinstance(error, StoreUnusable)
        assert "version 6.0, and 6.2 is needed" in str(error)
        network.alters = (b"redis_version:7.2.4", b"redis_version:6.2.0")
        async with store:
            await store.ping()


@pytest.mark.parametrize("place", [0, 4])
async def test_a_prefix_in_use_by_something_else_is_said_to_be(own_redis: RedisServer, place: int) -> None:
    store = RedisStore(own_redis.url, prefix="theirs:")
    with own_redis.client() as client:
        client.lpush(store._index.keys[place], "theirs")
        error = await fails_to_open(store)
        assert isinstance(error, StoreUnusable)
        assert "prefix of its own (now 'theirs:')" in str(error)
        assert client.lrange(store._index.keys[place], 0, -1) == [b"theirs"]
    async with RedisStore(own_redis.url, prefix="ours:") as store:
        await store.ping()


async def test_a_node_of_a_cluster_and_a_lone_server_are_said_to_be_what_they_are(redis: RedisServer) -> None:
    with redis_server("cluster-enabled yes") as node:
        error = await fails_to_open(RedisStore(node.url))
        assert "luster" in str(error)
    with redis_cluster(1) as (node,):
        async with RedisStore(node.url) as store:
            await store.ping()
    lone = await fails_to_open(RedisStore(f"redis+cluster://{redis.address}"))
    assert isinstance(lone, StoreUnusable)
    assert "use redis://" in str(lone)


async def test_a_database_that_is_not_there_is_said_not_to_be(redis: RedisServer) -> None:
    error = await fails_to_open(RedisStore(f"{redis.url}/99"))
    assert isinstance(error, StoreUnusable)
    assert "mend the number" in str(error)


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (exceptions.AuthenticationError("invalid username-password pair"), True),
        (exceptions.AuthenticationWrongNumberOfArgsError("wrong number of arguments"), True),
        (exceptions.NoPermissionError("this user has no permissions"), True),
        (exceptions.MovedError("7 127.0.0.1:1"), True),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), True),
        (exceptions.ResponseError("DENIED Redis is running in protected mode"), True),
        (exceptions.ConnectionError("Error 111 connecting: refused"), False),
        (exceptions.ConnectionError("Error -2 connecting: Name or service not known."), False),
        (exceptions.TimeoutError("Timeout connecting to server"), False),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), False),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), False),
        (exceptions.OutOfMemoryError("command not allowed"), False),
        (exceptions.ClusterDownError("The cluster is down"), False),
        (exceptions.MasterDownError("Link with MASTER is down"), False),
        (exceptions.TryAgainError("7 127.0.0.1:1"), False),
        (exceptions.ConnectionError("max number of clients reached"), False),
        (exceptions.ResponseError("MISCONF unable to persist"), False),
        (TimeoutError(), False),
        (RuntimeError("something new"), False),
    ],
)
def test_each_error_heals_or_does_not(error: Exception, for_good: bool) -> None:
    assert type(not_opened(error)) is (StoreUnusable if for_good else StoreUnavailable)
