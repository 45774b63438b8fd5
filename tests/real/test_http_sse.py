"""The SDKs' clients and servers over HTTP+SSE, the transport of 2024-11-05."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from starlette.applications import Starlette
from starlette.routing import Mount

from shadowcat import create_app, lifespan_of
from shadowcat_stores import MemoryStore, SQLiteStore
from tests.real._client import Asked, Wire, open_sse_client, text_of
from tests.real._node import run_client
from tests.real._process import PythonServer, ServerProcess
from tests.support.serving import serve
from tests.support.splitter import splitter

Connect = Callable[..., AbstractAsyncContextManager[Client]]
Route = AbstractAsyncContextManager[str]


@asynccontextmanager
async def direct(server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    yield server.url


@asynccontextmanager
async def proxied(server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    async with serve(create_app(MemoryStore(), upstream=server.url)) as base:
        yield base + "/sse"


@asynccontextmanager
async def mounted(server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    """By name, and under a prefix of a host's."""
    proxy = create_app(MemoryStore(), upstream={"other": "http://127.0.0.1:1/mcp", "sample": server.url})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with lifespan_of(proxy):
            yield

    async with serve(Starlette(routes=[Mount("/gateway", proxy)], lifespan=lifespan)) as base:
        yield base + "/gateway/sample/sse"


@asynccontextmanager
async def replicated(server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    """By two replicas in turn, a connection each."""
    apps = [create_app(SQLiteStore(tmp_path / "s.db"), upstream=server.url) for _ in range(2)]
    async with serve(apps[0]) as one, serve(apps[1]) as other, splitter(one, other) as split:
        yield split.base + "/sse"
        assert min(split.taken.values()) > 0


@pytest.fixture(params=[direct, proxied, mounted, replicated], ids=lambda way: way.__name__)
async def url(request: pytest.FixtureRequest, server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    """Where a client finds the server: every test that uses it runs once for each way there."""
    async with request.param(server, tmp_path) as url:
        yield url


@pytest.fixture
def server(request: pytest.FixtureRequest) -> ServerProcess:
    """The server, as the test parametrises it: the Python SDK's, or npm's everything server."""
    chosen: ServerProcess = request.getfixturevalue(getattr(request, "param", "http_sse_server"))
    return chosen


@pytest.fixture
def connect(url: str, server: ServerProcess, wire: Wire) -> Connect:
    """Give a client that is ready. At the end each of its requests must have reached the server once."""

    @asynccontextmanager
    async def opener(**callbacks: Any) -> AsyncIterator[Client]:
        async with open_sse_client(url, wire, **callbacks) as client:
            yield client
        assert Counter(await server.requests_of(wire.client_id)) == Counter(wire.sent)
        assert {answer for answer in wire.answered if answer[1] != 202} == {("GET", 200, "text/event-stream")}

    return opener


async def test_initialize_list_and_call(connect: Connect, wire: Wire) -> None:
    async with connect() as client:
        about, agreed = client.server_info, client.protocol_version
        tools = {tool.name for tool in (await client.list_tools()).tools}
        said = await client.call_tool("echo", {"text": "grüß dich 🐈\r\n\x00"})
        failed = await client.call_tool("fail", {"reason": "no luck"})
        large = await client.call_tool("repeat", {"text": "größer🐈", "times": 30_000})

    assert about is not None
    assert (about.name, agreed) == ("shadowcat-sample", "2025-11-25")
    assert {"echo", "count", "greet"} <= tools
    assert said.structured_content == {"result": "grüß dich 🐈\r\n\x00"}
    assert failed.is_error
    assert text_of(large) == "größer🐈" * 30_000
    assert Counter(wire.sent) == {"GET": 1, "POST": 6}
    assert len(wire.session_ids) == 1


async def test_progress_arrives_while_the_tool_is_at_work(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        await server.give(f"{wire.client_id}:{progress:g}")  # only now does the tool go on

    async with connect() as client:
        done = await client.call_tool(
            "count", {"to": 5, "gate": wire.client_id}, progress_callback=on_progress
        )
    assert seen == [1, 2, 3, 4, 5]
    assert text_of(done) == "counted to 5"


async def test_the_server_asks_and_the_client_answers(connect: Connect, asked: Asked) -> None:
    async with connect(
        elicitation_callback=asked.elicit("accept"),
        sampling_callback=asked.sample,
        list_roots_callback=asked.roots,
    ) as client:
        greeted = await client.call_tool("greet", {})
        pondered = await client.call_tool("ponder", {"question": "Six times seven?"})
        roots = await client.call_tool("roots", {})
    assert text_of(greeted) == "Hello, Ada!"
    assert text_of(pondered) == "Six times seven? Forty-two."
    assert text_of(roots) == "file:///srv/ada"


@pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed:mcp.MCPDeprecationWarning")
async def test_a_resource_that_changes_is_told(
    connect: Connect, server: PythonServer, wire: Wire, asked: Asked
) -> None:
    uri = f"note://{wire.client_id}"
    async with connect(message_handler=asked.notified) as client:
        await client.subscribe_resource(uri)
        await server.change_note(wire.client_id, "first")
        assert await asked.updates.get() == uri


async def test_a_call_is_cancelled(connect: Connect, server: PythonServer, wire: Wire) -> None:
    key = wire.client_id
    async with connect() as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(partial(client.call_tool, "block", {"key": key}))
            await server.wait_for(f"{key}:started")
            calls.cancel_scope.cancel()
        await server.wait_for(f"{key}:cancelled")
        assert text_of(await client.call_tool("echo", {"text": "still here"})) == "still here"


async def test_a_client_that_leaves_ends_what_it_asked_for(
    url: str, server: PythonServer, wire: Wire
) -> None:
    key = wire.client_id
    async with open_sse_client(url, wire) as client, anyio.create_task_group() as calls:
        calls.start_soon(partial(client.call_tool, "block", {"key": key}))
        await server.wait_for(f"{key}:started")
        calls.cancel_scope.cancel()
    await server.wait_for(f"{key}:cancelled")


@pytest.mark.parametrize("server", ["node_http_sse_server"], indirect=True)
async def test_the_python_client_on_the_node_server(connect: Connect, asked: Asked) -> None:
    async with connect(
        elicitation_callback=asked.elicit("accept"),
        sampling_callback=asked.sample,
        list_roots_callback=asked.roots,
    ) as client:
        said = await client.call_tool("echo", {"message": "grüß dich 🐈"})
        operation = {"duration": 0.1, "steps": 4}
        seen: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)

        await client.call_tool("trigger-long-running-operation", operation, progress_callback=on_progress)
        sampled = await client.call_tool("trigger-sampling-request", {"prompt": "?", "maxTokens": 20})
    assert text_of(said) == "Echo: grüß dich 🐈"
    assert seen == [1, 2, 3, 4]
    assert "Forty-two." in text_of(sampled)


@pytest.mark.parametrize("server", ["http_sse_server", "node_http_sse_server"], indirect=True)
async def test_the_typescript_client_falls_back_to_it(url: str, server: ServerProcess) -> None:
    result = await run_client(url, "tools")
    assert "echo" in result["tools"]
    refused, stream, *posts = result["wire"]
    assert refused[:2] == ["POST", 405 if server.path == "/deep/sse" else 404]
    assert stream == ["GET", 200, "text/event-stream"]
    assert {tuple(each[:2]) for each in posts} == {("POST", 202)}
    # The everything server asks for roots unasked, and the client may be gone before that answer is accepted.
    reached = Counter(await server.requests_of(result["clientId"]))
    assert Counter(each[0] for each in result["wire"]) <= reached <= Counter(result["sent"])


@pytest.mark.parametrize("server", ["node_http_sse_server"], indirect=True)
@pytest.mark.parametrize("scenario", ["progress", "cancel", "elicit", "sample", "roots", "subscribe"])
async def test_the_typescript_client_on_the_node_server(url: str, scenario: str) -> None:
    result = await run_client(url, scenario)
    assert EXPECTED[scenario](result)


EXPECTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    # Directly, too, the client is no more told of the last step when it comes together with the answer.
    "progress": lambda got: got["seen"][:3] == [[1, 4], [2, 4], [3, 4]] and "completed" in got["said"],
    "cancel": lambda got: got["outcome"] == "cancelled" and got["said"] == "Echo: still here",
    "elicit": lambda got: got["asked"][-1][0] == "elicitation/create" and "Ada" in got["said"],
    "sample": lambda got: "forty-two" in got["said"],
    "roots": lambda got: "file:///srv/ada" in got["said"],
    "subscribe": lambda got: got["updated"] == got["uri"],
}
