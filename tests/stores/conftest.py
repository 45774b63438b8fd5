"""Servers for the tests of `RedisStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import redis as redis_py

from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock
from tests.support.redis import RedisServer, redis_cluster, redis_server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A server for whoever leaves it as it was."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server to do anything with."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[list[RedisServer]]:
    """A cluster of three nodes for whoever leaves it as it was."""
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture
def clock() -> FakeClock:
    """The clock of a test's stores."""
    return FakeClock()


@pytest.fixture
async def store(redis: RedisServer, clock: FakeClock) -> AsyncIterator[RedisStore]:
    """An open store on the server, with a prefix of its own."""
    async with RedisStore(redis.url, prefix=f"test-{uuid4()}:", clock=clock) as store:
        yield store


@pytest.fixture
def client(redis: RedisServer) -> Iterator[redis_py.Redis]:
    """A client to look at the server with."""
    with redis.client() as client:
        yield client
