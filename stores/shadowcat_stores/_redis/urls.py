"""From a URL, or a client of redis-py, to a server. `shadowcat_stores.redis` says what URLs there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from shadowcat_stores._redis.driver import (
    ClusterNode,
    ConnectionPool,
    NoBackoff,
    Redis,
    RedisCluster,
    RedisClusterException,
    RedisError,
    Retry,
    Sentinel,
    SSLConnection,
    parse_url,
)
from shadowcat_stores._redis.servers import ClusterServer, Server, SingleServer
from shadowcat_stores.records import StoreLimits

Client = Redis | RedisCluster
MakeServer = Callable[[float], Server]
"""Takes the timeout; makes a server to be used in the running event loop."""

_LIMITS: Final = {f"max_{name}": name for name in ("sessions", "frames", "frame_bytes", "streams")}
_OF_SENTINELS_TOO: Final = ("socket_", "ssl", "retry", "protocol")
_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379


class Place(NamedTuple):
    """What a URL says."""

    url: str
    """Without the store's own options."""
    prefix: str | None
    timeout: float | None
    limits: StoreLimits


def read_url(url: str) -> Place:
    """Return what the URL says.

    Raises:
        ValueError: an option of the store's own is wrong.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix, timeout = options.pop("prefix", None), options.pop("timeout", None)
    limits = {_LIMITS[name]: _number(name, options.pop(name)) for name in _LIMITS if name in options}
    return Place(
        url=urlunsplit(parts._replace(query=urlencode(options))),
        prefix=prefix,
        timeout=None if timeout is None else _seconds(timeout),
        limits=StoreLimits(**limits),
    )


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"{name} is {value!r} in the store's URL: write a whole number above 0")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"timeout is {value!r} in the store's URL: write a number of seconds above 0")
    return seconds


def server_of_client(client: Client) -> MakeServer:
    """Return what makes a server of a client, which is not closed.

    Raises:
        ValueError: it is no asyncio client of redis-py, or decodes what it reads.
    """
    if not isinstance(client, Redis | RedisCluster):
        raise ValueError(f"{client!r} is no store: pass a URL, or a client of redis.asyncio")
    if client.get_encoder().decode_responses:
        raise ValueError("the client decodes what it reads: make it with decode_responses=False")
    if isinstance(client, RedisCluster):
        return lambda timeout: ClusterServer(client, timeout, None)
    return lambda timeout: SingleServer(client.connection_pool, timeout, None)


def server_of_url(url: str) -> MakeServer:
    """Return what makes a server of a URL without options of the store's own; each time with a new client.

    Raises:
        ValueError: the URL names no server; the message says what to write, and not the URL: it may hold a
            password.
    """
    parts = urlsplit(url)
    name, _, form = parts.scheme.replace("valkeys", "rediss").replace("valkey", "redis").partition("+")
    make = {"": _single, "sentinel": _sentinel, "cluster": _cluster}.get(form)
    if make is None or (name == "unix" and form) or name not in ("redis", "rediss", "unix"):
        raise ValueError(f"{parts.scheme + '://'!r} is no Redis or Valkey: see shadowcat_stores.redis")
    if parts.fragment or not _has_good_ports(parts):
        # Without what is wrong: it may be the end of a password.
        raise ValueError(
            f"the {parts.scheme}:// URL of the store is wrong: write addresses as host:port, and what is "
            "special in a password percent-encoded"
        )
    try:
        made = make(parts, name)
        made(1.0)  # What is wrong with an option shall be known now, and not when it is first used.
    except (TypeError, ValueError, OSError, RedisError, RedisClusterException) as exc:
        raise ValueError(f"the {parts.scheme}:// URL of the store is wrong: {exc}") from None
    return made


def _has_good_ports(parts: SplitResult) -> bool:
    try:
        return all(each.port != 0 for each in _addresses(parts))
    except ValueError:
        return False


def _addresses(parts: SplitResult) -> list[SplitResult]:
    return [urlsplit(f"//{each}") for each in parts.netloc.rpartition("@")[2].split(",")]


def _options(parts: SplitResult, name: str, timeout: float) -> dict[str, Any]:
    """Return what makes a connection, where the URL says nothing else."""
    said: dict[str, Any] = dict(parse_url(urlunsplit(parts._replace(scheme=name))))
    return {
        "protocol": 2,
        "socket_timeout": None,  # The store bounds each command by itself, which costs less.
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        **said,
    }


def _single(parts: SplitResult, name: str) -> MakeServer:
    database = parts.path.strip("/")
    if name != "unix" and database and not database.isdecimal():
        raise ValueError(f"{database!r} is no database: write its number")

    def make(timeout: float) -> Server:
        options = _options(parts, name, timeout)
        if name == "unix":
            del options["socket_keepalive"]
        pool = ConnectionPool(**options)
        pool.make_connection()  # type: ignore[no-untyped-call]
        return SingleServer(pool, timeout, pool.aclose)

    return make


def _sentinel(parts: SplitResult, name: str) -> MakeServer:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("write the name of the service after the Sentinels' addresses: host:26379/mymaster")

    def make(timeout: float) -> Server:
        options = _client_options(parts._replace(path=f"/{database}"), name, timeout)
        own = {each: options.pop(f"sentinel_{each}", None) for each in ("username", "password")}
        options.setdefault("ssl", False)
        own |= {each: options[each] for each in options if each.startswith(_OF_SENTINELS_TOO)}
        hosts = _hosts(parts, _SENTINEL_PORT)
        sentinel = Sentinel(hosts, sentinel_kwargs=own, **options)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(unquote(service))
        client.connection_pool.make_connection()

        async def close() -> None:
            for each in (client, *sentinel.sentinels):
                await each.aclose()

        return SingleServer(client.connection_pool, timeout, close)

    return make


def _cluster(parts: SplitResult, name: str) -> MakeServer:
    def make(timeout: float) -> Server:
        options = _client_options(parts, name, timeout)
        nodes = [ClusterNode(host, port) for host, port in _hosts(parts, _REDIS_PORT)]
        client = RedisCluster(startup_nodes=nodes, **options)
        return ClusterServer(client, timeout, client.aclose)

    return make


def _client_options(parts: SplitResult, name: str, timeout: float) -> dict[str, Any]:
    """Return what makes a client of several hosts, which are not among it."""
    credentials, at, _ = parts.netloc.rpartition("@")
    options = _options(parts._replace(netloc=f"{credentials}{at}several"), name, timeout)
    del options["host"]
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return options


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    found = _addresses(parts)
    if not all(each.hostname for each in found):
        raise ValueError("write the addresses as host:port,host:port")
    return [(str(each.hostname), each.port or port) for each in found]
