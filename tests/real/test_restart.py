"""A real server is restarted in the middle of a session; the Python SDK's client goes on in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack

import pytest

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


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed:mcp.MCPDeprecationWarning")
@pytest.mark.parametrize(
    ("start", "argument", "said", "uri"),
    [
        (python_server, "text", "{}", "note://a"),
        (json_server, "text", "{}", "note://a"),
        (everything_server, "message", "Echo: {}", "demo://resource/static/document/features.md"),
    ],
)
@pytest.mark.parametrize("revision", ["2025-03-26", "2025-11-25"])
async def test_the_client_goes_on(
    route: ProxiedRoute,
    wire: Wire,
    start: Start,
    argument: str,
    said: str,
    uri: str,
    revision: str,
) -> None:
    with ExitStack() as running:
        with start(0) as server:
            url = await route.url_for(server.url)
            port = server.port
            conversation = AsyncExitStack()
            session = await conversation.enter_async_context(open_client(url, revision, wire))
            before = text_of(await session.call_tool("echo", {argument: "before"}))
            await session.subscribe_resource(uri)
        again = running.enter_context(start(port))
        async with conversation:
            after = [text_of(await session.call_tool("echo", {argument: str(n)})) for n in range(3)]
        posts = (await again.requests_of(wire.client_id)).count("POST")
    assert before == said.format("before")
    assert after == [said.format(n) for n in range(3)]
    # The refused one; ping, initialize, initialized, the subscription; the refused one again, and two more.
    assert posts == 8
