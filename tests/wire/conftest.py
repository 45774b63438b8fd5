"""What the tests of restored sessions ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowcat_stores import SessionStore, SQLiteStore, store_from_url
from tests.support.forgetful import ForgetfulServer
from tests.support.redis import redis_server
from tests.support.upstream import ScriptedUpstream


@pytest.fixture
def server(upstream: ScriptedUpstream) -> ForgetfulServer:
    """A server that keeps sessions, on the scripted upstream."""
    return ForgetfulServer(upstream)


@pytest.fixture(params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[SessionStore]]:
    """The stores of three replicas."""
    if request.param == "sqlite":
        yield [SQLiteStore(tmp_path / "sessions.db") for _ in range(3)]
    else:
        with redis_server() as server:
            yield [store_from_url(server.url) for _ in range(3)]
