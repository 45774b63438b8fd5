"""The servers, started once per run, and the two routes to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Self

import pytest
from mcp import Client

from shadowcat import create_app
from shadowcat_stores import MemoryStore
from tests.real._client import Asked, Wire, open_client
from tests.real._node import everything_server
from tests.real._process import PythonServer, ServerProcess
from tests.support.serving import serve

Connect = Callable[..., AbstractAsyncContextManager[Client]]

_running: list[ServerProcess] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers printed during a test that failed."""
    report = yield
    if report.when == "call":
        for server in _running:
            if (output := server.new_output()) and report.failed:
                report.sections.append((f"output of {server.name}", output))
    return report


# -- servers --------------------------------------------------------------------------------------------


def _run(server: ServerProcess) -> Iterator[Any]:
    with server:
        _running.append(server)
        yield server
        _running.remove(server)


@pytest.fixture(scope="session")
def sse_server() -> Iterator[PythonServer]:
    """The Python SDK's server: sessions, SSE answers."""
    yield from _run(PythonServer("the Python server"))


@pytest.fixture(scope="session")
def json_server() -> Iterator[PythonServer]:
    """The Python SDK's server: sessions, JSON answers."""
    yield from _run(PythonServer("the Python server (JSON)", "--json"))


@pytest.fixture(scope="session")
def stateless_server() -> Iterator[PythonServer]:
    """The Python SDK's server: no sessions, SSE answers."""
    yield from _run(PythonServer("the Python server (stateless)", "--stateless"))


@pytest.fixture(scope="session")
def node_server() -> Iterator[ServerProcess]:
    """npm's `@modelcontextprotocol/server-everything`: sessions, SSE answers with event ids."""
    yield from _run(everything_server())


@pytest.fixture(scope="session")
def http_sse_server() -> Iterator[PythonServer]:
    """The Python SDK's server over HTTP+SSE (2024-11-05), mounted in another app."""
    yield from _run(PythonServer("the Python server (HTTP+SSE)", "--http-sse"))


@pytest.fixture(scope="session")
def node_http_sse_server() -> Iterator[ServerProcess]:
    """npm's `@modelcontextprotocol/server-everything` over HTTP+SSE (2024-11-05)."""
    yield from _run(everything_server(transport="sse"))


@pytest.fixture
def server(request: pytest.FixtureRequest) -> ServerProcess:
    """The server that `connect` leads to: sse, or as the test parametrises it: json, stateless, node, …"""
    chosen: ServerProcess = request.getfixturevalue(f"{getattr(request, 'param', 'sse')}_server")
    return chosen


# -- routes ---------------------------------------------------------------------------------------------


class Route:
    """How a client reaches a server."""

    name = "direct"

    async def url_for(self, server_url: str) -> str:
        """Return the URL at which the client finds the server."""
        return server_url


class ProxiedRoute(Route):
    """Through a Shadowcat of its own for each server, all of them on one store."""

    name = "proxied"

    def __init__(self, stack: AsyncExitStack) -> None:
        self.store = MemoryStore()
        self._stack = stack
        self._urls: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            yield cls(stack)

    async def url_for(self, server_url: str) -> str:
        if server_url not in self._urls:
            app = create_app(self.store, upstream=server_url)
            self._urls[server_url] = await self._stack.enter_async_context(serve(app)) + "/mcp"
        return self._urls[server_url]


@pytest.fixture(params=["direct", "proxied"])
async def route(request: pytest.FixtureRequest) -> AsyncIterator[Route]:
    """Both ways to a server: every test that uses it runs twice."""
    if request.param == "direct":
        yield Route()
    else:
        async with ProxiedRoute.opened() as proxied:
            yield proxied


@pytest.fixture
def proxied_store(route: Route) -> MemoryStore:
    """The store of the proxy on the route: `await proxied_store.get_frames(session_id)` is a tape.

    For tests that take the proxied route only: they override `route` with `ProxiedRoute.opened()`.
    """
    assert isinstance(route, ProxiedRoute)
    return route.store


# -- Python clients -------------------------------------------------------------------------------------


@pytest.fixture
def wire() -> Wire:
    """The wire of the test's first client."""
    return Wire()


@pytest.fixture
def asked() -> Asked:
    """What the server asked of the client."""
    return Asked()


@pytest.fixture
def connect(route: Route, server: ServerProcess, wire: Wire) -> Connect:
    """Give `connect(revision, wire=..., **callbacks)`: a Python SDK client, ready to use.

    When the conversation is over and went well, each of its requests must have reached the server once, and
    every response that named a session must have named the same one.
    """

    @asynccontextmanager
    async def opener(revision: str, wire: Wire = wire, **callbacks: Any) -> AsyncIterator[Client]:
        url = await route.url_for(server.url)
        async with open_client(url, revision, wire, **callbacks) as client:
            yield client
        assert len(wire.session_ids) <= 1
        assert Counter(await server.requests_of(wire.client_id)) == Counter(wire.sent)

    return opener
