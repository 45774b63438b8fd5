"""What no client on a socket brings about: servers of other ASGI versions, and moments in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat import create_app, lifespan_of
from shadowcat.eras.endpoint_stream import EndpointResponse, messages_path
from shadowcat.inbound import ClientRequest
from shadowcat.service import Service
from shadowcat.upstream import UpstreamResponse
from shadowcat_stores import MemoryStore

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/sse",
    "headers": [],
    "query_string": b"",
    "scheme": "http",
}


class Endless(httpx2.AsyncByteStream):
    """Begins with the event, then is silent, but for an answer when it is told to."""

    def __init__(self) -> None:
        self.is_closed = False
        self.answers = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"event: endpoint\ndata: /messages\n\n"
        await self.answers.wait()
        yield b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n'
        await anyio.sleep_forever()

    async def aclose(self) -> None:
        self.is_closed = True


def nowhere(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("nowhere")


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    app = create_app(MemoryStore(), upstream="http://nowhere/sse", transport=httpx2.MockTransport(nowhere))
    async with lifespan_of(app):
        yield app.state.shadowcat


def relayed(service: Service, body: Endless) -> EndpointResponse:
    response = UpstreamResponse(200, [(b"content-type", b"text/event-stream")], body)
    return service.proxies["default"].http_sse.relay(ClientRequest(SCOPE), response)


async def test_a_client_that_left_before_its_response_gets_none(service: Service) -> None:
    body, sent = Endless(), []

    async def send(message: Any) -> None:
        sent.append(message)

    response = relayed(service, body)
    response.client_left()
    with anyio.fail_after(5):
        await response(SCOPE, None, send)  # type: ignore[arg-type]
    assert (sent, body.is_closed) == ([], True)
    assert await service.store.count_sessions() == 0


async def test_a_server_that_says_by_oserror_that_the_client_has_left(service: Service) -> None:
    body, sent = Endless(), []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            raise OSError

    with anyio.fail_after(5):
        await relayed(service, body)(SCOPE, None, send)  # type: ignore[arg-type]
    assert (sent, body.is_closed) == (["http.response.start", "http.response.body"], True)
    assert await service.store.count_sessions() == 0
    assert len(service.streams) == 0


async def test_a_host_that_cancels_the_call_ends_the_session(service: Service) -> None:
    body, begun = Endless(), anyio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            begun.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relayed(service, body), SCOPE, None, send)  # type: ignore[arg-type]
            await begun.wait()
            assert await service.store.count_sessions() == 1
            tasks.cancel_scope.cancel()
    assert body.is_closed
    assert await service.store.count_sessions() == 0
    assert len(service.streams) == 0


async def test_an_answer_that_comes_while_the_tape_is_asked_for_it_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, sent, begun = Endless(), [], anyio.Event()
    stream = relayed(service, body)

    async def missing(session_id: str) -> set[Any]:
        body.answers.set()
        while not stream._answered:
            await anyio.lowlevel.checkpoint()
        return {1}

    async def send(message: Any) -> None:
        sent.append(message.get("body"))
        begun.set()

    monkeypatch.setattr(service.streams, "missing", missing)
    service.streams.owners.id = "one of several"
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream, SCOPE, None, send)  # type: ignore[arg-type]
            while not begun.is_set():
                await anyio.lowlevel.checkpoint()
            stream.cut()
    assert b'"id":1' in b"".join(each or b"" for each in sent)


async def test_the_requests_that_are_waited_for_are_bounded(service: Service) -> None:
    stream = relayed(service, Endless())
    stream.expect(range(5000))
    stream.forget(range(1000))
    stream.expect(["x" * 5000])
    stream.cut()
    stream.expect([1])
    stream.forget([1])
    assert stream._scope.cancel_called


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("", "/mcp", "/messages"),
        ("", "/a/sse", "/a/messages"),
        ("/tools", "/tools/mcp", "/tools/messages"),
        ("/tools/", "/tools/mcp", "/tools/messages"),
        ("/tools", "/mcp", "/tools/messages"),
        ("/tools", "/toolsmith/mcp", "/tools/toolsmith/messages"),
        ("/", "/mcp", "/messages"),
        ("", "//evil.example/mcp", "/evil.example/messages"),
        ("", "/a b/ü?#/mcp", "/a%20b/%C3%BC%3F%23/messages"),
    ],
)
def test_the_path_for_messages_is_beside_that_of_the_request(root: str, path: str, expected: str) -> None:
    assert messages_path({"path": path, "root_path": root}) == expected
