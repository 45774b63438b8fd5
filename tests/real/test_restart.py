"""A real server is restarted in the middle of a session; the Python SDK's client goes on in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import pytest

from shadowcat.restore import MARK
from shadowcat_stores import MemoryStore
from tests.real._client import Wire, open_client, text_of
from tests.real._node import everything_server
from tests.real._process import PythonServer, ServerProcess
from tests.real.conftest import ProxiedRoute

Start = Callable[[int], ServerProcess]


def python_server(port: int) -> ServerProcess:
    return PythonServer("the Python server", "--port", str(port))


def json_server(port: int) -> ServerProcess:
    return PythonServer("the Python server (JSON)", "--json", "--port", str(port))


@pytest.fixture
async def route() -> AsyncIterator[ProxiedRoute]:
    """Without the proxy the session would be over."""
    async with ProxiedRoute.opened() as proxied:
        yield proxied


@pytest.mark.parametrize(
    ("start", "argument", "said"),
    [(python_server, "text", "{}"), (json_server, "text", "{}"), (everything_server, "message", "Echo: {}")],
)
@pytest.mark.parametrize("revision", ["2025-03-26", "2025-11-25"])
async def test_the_client_goes_on(
    route: ProxiedRoute,
    proxied_store: MemoryStore,
    wire: Wire,
    start: Start,
    argument: str,
    said: str,
    revision: str,
) -> None:
    with start(0) as server:
        port = server.port
        client = await route.url_for(server.url)
        async with open_client(client, revision, wire) as session:
            assert text_of(await session.call_tool("echo", {argument: "before"})) == said.format("before")
            await session.set_logging_level("error") if start is everything_server else None
            server.__exit__(None, None, None)
            with start(port) as again:
                after = [text_of(await session.call_tool("echo", {argument: str(n)})) for n in range(3)]
                posts = (await again.requests_of(wire.client_id)).count("POST")
                tape = await proxied_store.get_frames(wire.session_id)
                record = await proxied_store.get_session(wire.session_id)
    assert after == [said.format(n) for n in range(3)]
    # The refused one; ping, initialize, initialized (and the log level); the refused one again, and two more.
    assert posts == (8 if start is everything_server else 7)
    assert MARK in [frame.envelope.raw for frame in tape]
    assert record is not None
    assert json.loads(record.initialize)["protocolVersion"] == revision
