"""The one module that imports redis-py, so that one place says what to install where it is missing."""

from __future__ import annotations

try:
    from hiredis import pack_command
    from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AskError,
        ExecAbortError,
        MovedError,
        NoScriptError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
        ResponseError,
        TryAgainError,
    )
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError
except ImportError as exc:
    raise ImportError(
        f"RedisStore needs redis-py with hiredis ({exc}): pip install 'shadowcat-mcp[redis]'", name=exc.name
    ) from exc

__all__ = [
    "AbstractConnection",
    "AskError",
    "ClusterNode",
    "Connection",
    "ConnectionPool",
    "ExecAbortError",
    "MovedError",
    "NoBackoff",
    "NoScriptError",
    "ReadOnlyError",
    "Redis",
    "RedisCluster",
    "RedisClusterException",
    "RedisConnectionError",
    "RedisError",
    "RedisTimeoutError",
    "ResponseError",
    "Retry",
    "SSLConnection",
    "Sentinel",
    "TryAgainError",
    "pack_command",
    "parse_url",
]
