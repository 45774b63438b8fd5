"""The stores that outlive a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis import RedisServer, redis_server


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.db'}"
    else:
        with redis_server() as server:
            yield server.url


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """An empty server of the test's own."""
    with redis_server() as server:
        yield server
