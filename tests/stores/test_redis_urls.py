"""What `RedisStore` is made of: URLs and clients."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from redis.asyncio import Redis, RedisCluster, Sentinel

from shadowcat_stores import StoreLimits, StoreUnavailable, store_from_url
from shadowcat_stores.redis import RedisStore
from tests.support.ports import free_port
from tests.support.redis import RedisServer, redis_server, relay
from tests.support.tls import server_context

SCHEMES = ["redis", "rediss", "valkey", "valkeys"]

WITHOUT_REDIS = """
import sys
sys.modules["{missing}"] = None
import shadowcat_stores
from shadowcat_stores import *
try:
    shadowcat_stores.store_from_url("redis://localhost")
except ValueError as error:
    print(error)
"""


def test_every_scheme_has_an_entry_point() -> None:
    wanted = {f"{each}{form}" for each in SCHEMES for form in ("", "+sentinel", "+cluster")} | {"unix"}
    found = {
        point.name for point in entry_points(group="shadowcat.stores") if point.value.endswith(":RedisStore")
    }
    assert found == wanted


@pytest.mark.parametrize(
    "url",
    [
        *(f"{each}://user:p%40ss@localhost:6380/3?client_name=me" for each in SCHEMES),
        *(f"{each}+sentinel://user:pass@one:1,two/my%20master/3" for each in SCHEMES),
        *(f"{each}+cluster://user:pass@localhost:1,[::1]:2" for each in SCHEMES),
        "redis://",
        "unix:///run/redis.sock?db=3",
        "unix://user:pass@/run/redis.sock",
        "rediss://localhost?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis+sentinel://one/mymaster?sentinel_password=secret",
    ],
)
def test_a_url_gives_a_store(url: str) -> None:
    store = store_from_url(url)
    assert isinstance(store, RedisStore)
    assert store.prefix == "shadowcat:"
    assert store.timeout == 2.0
    assert store.limits == StoreLimits()
    assert store.is_open is False


def test_a_url_has_options_of_the_stores_own() -> None:
    store = RedisStore.from_url(
        "redis://localhost/1?prefix=a:&timeout=0.5&max_sessions=1&max_frames=2&max_frame_bytes=3&max_streams=4"
    )
    assert (store.prefix, store.timeout) == ("a:", 0.5)
    assert store.limits == StoreLimits(sessions=1, frames=2, frame_bytes=3, streams=4)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://", "'memory://' is no Redis or Valkey"),
        ("redis+proxy://localhost", "is no Redis or Valkey"),
        ("unix+cluster:///run/redis.sock", "is no Redis or Valkey"),
        ("localhost:6379", "is no Redis or Valkey"),
        ("redis://localhost/name", "'name' is no database"),
        ("redis://localhost?colour=blue", "colour"),
        ("redis://localhost?socket_timeout=long", "socket_timeout"),
        ("redis+cluster://localhost?colour=blue", "colour"),
        ("redis+cluster://localhost/1", "db"),
        ("redis+cluster://:pass@", "host:port,host:port"),
        ("redis+sentinel://one:1,two:2", "the name of the service"),
        ("redis+sentinel:///mymaster", "host:port,host:port"),
        ("redis+sentinel://one/mymaster?colour=blue", "colour"),
        ("redis://localhost?timeout=0", "timeout is '0'"),
        ("redis://localhost?timeout=soon", "timeout is 'soon'"),
        ("redis://localhost?timeout=inf", "timeout is 'inf'"),
        ("redis://localhost?max_sessions=0", "max_sessions is '0'"),
        ("redis://localhost?max_frames=%C2%B2", "max_frames"),
        ("redis://localhost?prefix=%7Ba%7D", "brace"),
    ],
)
def test_a_url_that_is_wrong_says_what_is(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RedisStore.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:sec#ret@host",
        "redis://user:sec/ret@host",
        "redis://user:sec?ret@host",
        "redis+sentinel://user:sec#ret@host/mymaster",
        "redis://user:ret@host?colour=blue",
        "nothing://user:ret@host",
    ],
)
def test_what_may_be_a_password_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis|nothing") as raised:
        RedisStore.from_url(url)
    assert "ret" not in str(raised.value)


@pytest.mark.parametrize("missing", ["redis", "hiredis"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = WITHOUT_REDIS.format(missing=missing)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "pip install 'shadowcat-mcp[redis]'" in said


def test_the_store_is_had_from_the_package() -> None:
    import shadowcat_stores

    assert shadowcat_stores.RedisStore is RedisStore
    with pytest.raises(AttributeError, match="NoStore"):
        getattr(shadowcat_stores, "NoStore")  # noqa: B009 - the type checker knows that it is not there


# -- clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (redis_py.Redis(), "redis.asyncio"),
        (None, "redis.asyncio"),
        (Redis(decode_responses=True), "decode_responses=False"),
        (RedisCluster("localhost", decode_responses=True), "decode_responses=False"),
    ],
)
def test_a_client_that_is_of_no_use_is_refused(client: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RedisStore(client)


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_of_nothing_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        RedisStore("redis://localhost", timeout=timeout)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_client_passed_in_is_used_and_not_closed(redis: RedisServer, protocol: int) -> None:
    async with Redis(port=redis.port, client_name=f"given-{protocol}", protocol=protocol) as client:
        before = await client.client_list()
        async with RedisStore(client, prefix="given:") as store:
            assert await store.count_sessions() == 0
        assert await client.ping()
        assert len(await client.client_list()) <= len(before)
        async with store:
            assert await store.count_sessions() == 0


async def test_a_client_closed_by_its_owner_connects_again(redis: RedisServer) -> None:
    client = Redis(port=redis.port)
    async with RedisStore(client, prefix="given:") as store:
        assert await store.count_sessions() == 0
        await client.aclose()
        with suppress(StoreUnavailable):
            await store.count_sessions()
        assert await store.count_sessions() == 0
    await client.aclose()


# -- what URLs lead to --------------------------------------------------------------------------------


async def test_credentials_and_the_database_are_used(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "me", "on", ">p@ss", "~*", "&*", "+@all")
    url = f"redis://me:p%40ss@{own_redis.address}/3"
    async with RedisStore.from_url(url) as store:
        await store.ping()
    with own_redis.client(db=3) as client:
        assert client.keys() == [b"shadowcat:{index}:probe"]


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = f"/tmp/shadowcat-{free_port()}.sock"  # noqa: S108 - a path of pytest's own may be too long for a socket
    with redis_server(f"unixsocket {path}"):
        async with store_from_url(f"unix://{path}?db=1") as store:
            assert await store.count_sessions() == 0


async def test_tls_is_checked(redis: RedisServer, tmp_path: Path) -> None:
    context, known_by = server_context(tmp_path)
    async with relay(redis, context) as network:
        address = f"rediss://localhost:{network.port}"
        async with store_from_url(f"{address}?ssl_ca_certs={known_by}&prefix=tls:") as store:
            assert await store.count_sessions() == 0
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store_from_url(address).open()


async def test_the_sentinels_name_the_primary(own_redis: RedisServer) -> None:
    watch = f"sentinel monitor mymaster 127.0.0.1 {own_redis.port} 1"
    with redis_server(watch, mode="--sentinel") as sentinel:
        addresses = f"127.0.0.1:1,{sentinel.address}"
        async with RedisStore.from_url(f"redis+sentinel://{addresses}/mymaster/2?prefix=s:") as store:
            await store.ping()
        with own_redis.client(db=2) as client:
            assert client.keys() == [b"s:{index}:probe"]
        with pytest.raises(StoreUnavailable, match="no primary of that name"):
            await RedisStore.from_url(f"redis+sentinel://{addresses}/other").open()
        manager = Sentinel([("127.0.0.1", sentinel.port)])  # type: ignore[no-untyped-call]
        async with manager.master_for("mymaster") as client, manager.sentinels[0]:
            async with RedisStore(client) as store:
                assert await store.count_sessions() == 0
            assert await client.ping()


async def test_a_lone_server_is_no_cluster(redis: RedisServer) -> None:
    with pytest.raises(StoreUnavailable, match="luster"):
        await RedisStore.from_url(f"redis+cluster://{redis.address}").open()
