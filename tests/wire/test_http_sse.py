"""HTTP+SSE, the transport of 2024-11-05: its stream, the address that this names, and messages there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from shadowcat import create_app, lifespan_of
from shadowcat.eras import endpoint_stream
from shadowcat_stores import MemoryStore
from tests.support.events import message
from tests.support.http_sse import RESULT, SSEServer, listening, path
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.serving import serve
from tests.support.upstream import ScriptedUpstream

CALL = request("tools/call", "c-1", {"n": 1})


@pytest.fixture
def server(upstream: ScriptedUpstream) -> SSEServer:
    return SSEServer(upstream)


@pytest.fixture
async def proxy(request: pytest.FixtureRequest, server: SSEServer) -> AsyncIterator[Proxied]:
    async with proxied(server.upstream.url, **getattr(request, "param", {})) as running:
        yield running


# -- the endpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["/mcp", "/sse"])
async def test_the_stream_is_at_the_proxys_address_and_so_are_the_messages(
    proxy: Proxied, server: SSEServer, beside: str
) -> None:
    proxy.path = beside
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            assert re.fullmatch(r"/messages\?session_id=[\w-]{32}", client.endpoint)
            response = await client.post(INITIALIZE)
            assert (response.status_code, response.content) == (202, b"Accepted")
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert message(await client.events.next())["result"] == RESULT
            assert (await client.post(CALL)).status_code == 202
            assert message(await client.events.next()) == {"jsonrpc": "2.0", "id": "c-1", "result": {"n": 1}}
    assert [each.target.encode() for each in server.posted] == [path(1), path(1)]
    assert [each.method for each in server.upstream.received] == ["GET", "POST", "POST"]
    counters = proxy.service.counters
    assert (counters.client_requests, counters.upstream_requests) == (3, {"forward": 3, "recover": 0})


async def test_the_requests_are_the_clients_own(proxy: Proxied, server: SSEServer) -> None:
    headers = {"X-Trace": "t-1", "Accept-Encoding": "gzip", "User-Agent": "a-client"}
    async with listening(proxy, **headers) as client:
        await client.post(b'{"jsonrpc": "2.0" , "method":"n"}', Accept="*/*")
    stream, posted = server.upstream.received
    assert posted.body == b'{"jsonrpc": "2.0" , "method":"n"}'
    assert posted.header(b"accept") == b"*/*"
    for received in (stream, posted):
        assert received.header(b"host") == server.upstream.url.split("/")[2].encode()
        assert received.header(b"x-trace") == b"t-1"
        assert received.header(b"user-agent") == b"a-client"
    # What is compressed could not be read; a stream of events seldom is.
    assert (stream.header(b"accept-encoding"), posted.header(b"accept-encoding")) == (None, b"gzip")


async def test_a_probing_client_ends_at_the_stream(proxy: Proxied, server: SSEServer) -> None:
    # https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#backwards-compatibility
    refused = await proxy.post(INITIALIZE)
    assert (refused.status_code, refused.content) == (405, b"no")
    assert refused.headers["allow"] == "GET"
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.begin()
        assert await proxy.store.count_sessions() == 1


async def test_a_preflight_passes(proxy: Proxied, server: SSEServer) -> None:
    response = await proxy.client.options(proxy.base + "/messages?session_id=x")
    assert (response.status_code, response.content) == (405, b"no")
    assert server.upstream.received[0].target == "/v1/sse"


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_messages_are_posted_only(proxy: Proxied, server: SSEServer, method: str) -> None:
    response = await proxy.client.request(method, proxy.base + "/messages")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
    assert server.upstream.received == []


async def test_what_the_upstream_refuses_passes(proxy: Proxied, server: SSEServer) -> None:
    async with listening(proxy) as client:
        server.refusal = ("400 Bad Request", b"Could not parse message")
        response = await client.post(CALL)
        assert (response.status_code, response.content) == (400, b"Could not parse message")
        refused = await client.post(b"{")
        assert refused.status_code == 400
        assert refused.json()["error"]["data"]["reason"] == "not_json"
    assert len(server.posted) == 1


# -- the endpoint event ---------------------------------------------------------------------------------


@asynccontextmanager
async def mounted(upstream: Any, prefix: str) -> AsyncIterator[Proxied]:
    app = create_app(MemoryStore(), upstream=upstream)

    @asynccontextmanager
    async def lifespan(host: Any) -> AsyncIterator[None]:
        async with lifespan_of(app):
            yield

    host = Starlette(routes=[Mount(prefix, app)], lifespan=lifespan)
    async with serve(host) as base, httpx2.AsyncClient(timeout=10) as client:
        yield Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)


@pytest.mark.parametrize("prefix", ["/gateway", "/a/{tenant}"])
async def test_it_names_the_proxys_address_under_its_prefix_and_the_upstreams_name(
    server: SSEServer, prefix: str
) -> None:
    shown = prefix.replace("{tenant}", "b%20c")
    async with mounted({"default": server.upstream.url, "files": server.upstream.url}, prefix) as proxy:
        for name in ("", "/files"):
            proxy.path = f"{shown}{name}/sse"
            async with listening(proxy) as client:
                assert client.endpoint.startswith(f"{shown}{name}/messages?session_id=")
                await client.begin()


async def test_it_is_under_the_root_path_that_the_server_says(server: SSEServer) -> None:
    app = create_app(MemoryStore(), upstream=server.upstream.url)
    async with serve(app, root_path="/behind") as base, httpx2.AsyncClient(timeout=10) as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)
        async with listening(proxy) as opened:
            assert opened.endpoint.startswith("/behind/messages?session_id=")


@pytest.mark.parametrize(
    "reference",
    ["/v1/messages/?n=1", "messages/?n=1", "{origin}/v1/messages/?n=1", "//{host}/v1/messages/?n=1#f"],
)
async def test_its_address_is_resolved_as_a_client_would(
    proxy: Proxied, server: SSEServer, reference: str
) -> None:
    host = server.upstream.url.split("/")[2]
    named = reference.format(origin=f"http://{host}", host=host)
    server.endpoint = lambda number: b"event: endpoint\ndata: %b\n\n" % named.encode()
    async with listening(proxy) as client:
        await client.begin()
    assert server.posted[0].target == "/v1/messages/?n=1"


@pytest.mark.parametrize(
    "reference",
    [
        "https://evil.example/messages",
        "//evil.example/messages",
        "https://{host}/messages",
        "http://127.0.0.1:1/messages",
        "http://[::",
        "javascript:alert(1)",
        "/v1/messages\ndata: /?n=1",
        "/\0",
        "/" + "x" * 5000,
    ],
)
async def test_an_address_of_another_origin_is_refused(
    proxy: Proxied, server: SSEServer, reference: str
) -> None:
    named = reference.format(host=server.upstream.url.split("/")[2])
    server.endpoint = lambda number: b": hello\n\nevent: endpoint\ndata: %b\n\n" % named.encode()
    with anyio.fail_after(5):
        async with proxy.stream("GET") as response:
            assert response.status_code == 502
            await response.aread()
        assert response.json()["error"]["data"]["reason"] == "upstream_error"
        await server.left.wait()
    assert await proxy.store.count_sessions() == 0
    assert len(proxy.service.streams) == 0


PRELUDES = {
    "LF": b"event: endpoint\ndata: /m?n=1\n\n",
    "CR": b"event: endpoint\rdata: /m?n=1\r\r",
    "CRLF": b"event: endpoint\r\ndata: /m?n=1\r\n\r\n",
    "other lines": b"\xef\xbb\xbf: hello\r\n\r\n:\r\n\r\n"
    b"retry: 10\r\nid: 7\r\ndata:/m?n=1\r\nevent:endpoint\r\n\r\n",
    "first of all": b"\xef\xbb\xbfdata: /m?n=1\nevent: endpoint\n\n",
    "a message before": b'data: {"jsonrpc":"2.0","method":"n"}\n\nevent: endpoint\ndata: /m?n=1\n\n',
}
AFTER = b'event: message\ndata: {"jsonrpc":"2.0","method":"n"}\n\n: the end\n\ndata: cut'


class Pieces(httpx2.AsyncBaseTransport):
    """A server whose stream comes in pieces of one size; it notes what it is asked for."""

    def __init__(self, stream: bytes, size: int) -> None:
        self.pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url))
        if request.method == "POST":
            return httpx2.Response(202)
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("prelude", PRELUDES.values(), ids=PRELUDES.keys())
async def test_all_else_of_the_stream_passes_in_any_form_and_in_any_pieces(prelude: bytes, size: int) -> None:
    transport = Pieces(prelude + AFTER, size)
    app = create_app(MemoryStore(), upstream="http://in-process/v1/sse", transport=transport)
    async with serve(app) as base, httpx2.AsyncClient(timeout=10) as client:
        response = await client.get(base + "/sse", headers={"Accept": "text/event-stream"})
    ours = re.search(rb"data: (/messages\?session_id=[\w-]{32})[\r\n]", response.content)
    assert ours is not None
    expected = re.sub(rb"data: ?/m\?n=1", b"data: " + ours[1], prelude + AFTER)
    assert response.content == expected


async def test_a_second_one_moves_the_address(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            for number in (7, 7, 8):
                await server.streams[1].chunk(b"event: endpoint\ndata: %b\n\n" % path(number))
                again = await client.events.next()
                assert again is not None
                assert again.data == client.endpoint.encode()
            assert (await client.post(CALL)).status_code == 404  # the server knows no stream of this number
    assert server.posted[0].target.encode() == path(8)


async def test_the_head_does_not_wait_for_it_without_end(
    proxy: Proxied, server: SSEServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_stream, "_HEAD_WAITS", 0.02)
    server.endpoint = lambda number: b": nothing yet\n\nevent: end"
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, "GET"))
            assert await reader.readuntil(b": nothing yet\n\n")
            await server.streams[1].chunk(b"point\ndata: " + path(1) + b"\n\n")
            assert b"data: /messages?session_id=" in await reader.readuntil(b"\n\n\r\n")
            assert await proxy.store.count_sessions() == 1
            await server.streams[1].chunk(b"event: endpoint\ndata: //evil.example/\n\n")
            # Too late for a status: what is cut must not look complete.
            assert not (await reader.read()).endswith(b"0\r\n\r\n")


async def test_a_flood_of_comments_is_not_held_back(proxy: Proxied, server: SSEServer) -> None:
    server.endpoint = lambda number: b": hello\n\n" * 10_000
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, "GET"))
            received = await reader.readuntil(b": hello\n\n")
            while received.count(b": hello\n\n") < 10_000:
                received += await reader.read(10_000)
    assert await proxy.store.count_sessions() == 0


async def test_a_stream_that_is_compressed_passes_as_it_is(proxy: Proxied, server: SSEServer) -> None:
    async def compressed(received: Any, connection: Any) -> None:
        await connection.respond(b"\x1f", ("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip"))

    server.upstream.handshake = compressed
    async with proxy.stream("GET") as response:
        assert [chunk async for chunk in response.aiter_raw()] == [b"\x1f"]
