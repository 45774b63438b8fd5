"""A client that leaves is noticed at once, and nothing of its request stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from shadowcat import Settings, create_app, lifespan_of
from shadowcat.connection import ClientConnection
from shadowcat_stores import MemoryStore
from tests.support.plain import plain_http
from tests.support.proxying import Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream


@pytest.fixture
async def proxy(upstream: ScriptedUpstream) -> AsyncIterator[Proxied]:
    """A proxy that adopts no stream: `test_adoption` has one that does."""
    async with proxied(upstream.url, adopt_seconds=0) as proxy:
        yield proxy


async def nothing_is_open(proxy: Proxied) -> None:
    while len(proxy.service.streams):
        await anyio.lowlevel.checkpoint()


class Held:
    """A script that holds each request, and says when the proxy has closed the connection."""

    def __init__(self, first: bytes | None, media: str = "text/event-stream") -> None:
        self.first = first
        self.media = media
        self.begun = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, received: Received, connection: Connection) -> None:
        if self.first is not None:
            await connection.start_stream(media=self.media)
            if self.first:
                await connection.chunk(self.first)
        self.begun.set()
        await connection.peer_left()
        self.left.set()


@pytest.mark.parametrize(
    ("first", "media"),
    [
        (None, ""),
        (b"", "text/event-stream"),
        (b"data: x\n\n", "text/event-stream"),
        (b'{"jsonrpc":', "application/json"),
        (b"\x89PNG", "image/png"),
    ],
    ids=["before the headers", "before the first event", "between events", "in JSON", "in other media"],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_upstream_is_closed_when_the_client_leaves(
    proxy: Proxied, upstream: ScriptedUpstream, method: str, first: bytes | None, media: str
) -> None:
    await proxy.begin()
    upstream.script = held = Held(first, media)
    message = request("tools/call") if method == "POST" else None
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, method, message, Mcp_Session_Id=proxy.session_id))
            await held.begun.wait()
            if first is not None:
                await reader.readuntil(b"\r\n\r\n")
                while len(proxy.service.streams) != 1:  # a GET's response and its stream count apart at first
                    await anyio.lowlevel.checkpoint()
        await held.left.wait()
        await nothing_is_open(proxy)
    assert len(upstream.forwarded) == 1
    upstream.script = Held(None)


async def test_a_client_that_sends_several_at_once_and_leaves_is_noticed(upstream: ScriptedUpstream) -> None:
    app = create_app(MemoryStore(), upstream=upstream.url, settings=Settings(adopt_seconds=0))
    async with serve(app, http=ClientConnection) as base, plain_http() as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)
        await proxy.begin()
        upstream.script = held = Held(b"data: x\n\n")
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (_, writer):
                one = raw_request(proxy.url, "POST", request("tools/call"), Mcp_Session_Id=proxy.session_id)
                writer.write(one * 3)
                await held.begun.wait()
            await held.left.wait()
        assert len(proxy.service.streams) == 0
    assert len(upstream.forwarded) == 1


async def test_a_client_that_leaves_while_sending_reaches_nobody(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin()
    async with raw_client(proxy.url) as (_, writer):
        whole = raw_request(proxy.url, "POST", request("tools/call"), Mcp_Session_Id=proxy.session_id)
        writer.write(whole[:-5])
        await writer.drain()
    # A later request is answered after the cut one was given up.
    assert (await proxy.client.get(proxy.base + "/healthz")).status_code == 200
    assert upstream.forwarded == []


async def test_200_connects_and_disconnects_leave_nothing(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    before = len(asyncio.all_tasks())
    for cycle in range(200):
        upstream.script = held = Held([None, b"", b"data: x\n\n"][cycle % 3])
        method, message = (("POST", request("tools/call")), ("GET", None))[cycle % 2]
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (_, writer):
                writer.write(raw_request(proxy.url, method, message, Mcp_Session_Id=proxy.session_id))
                await held.begun.wait()
            await held.left.wait()
            with anyio.fail_after(5):
                await nothing_is_open(proxy)
    assert len(upstream.forwarded) == 200
    # The tasks of the last connections end within a few turns of the loop.
    with anyio.fail_after(5):
        while len(asyncio.all_tasks()) > before:
            await anyio.lowlevel.checkpoint()
    assert upstream.connections <= 1


async def test_the_upstream_stream_is_closed_on_cancellation_from_outside(upstream: ScriptedUpstream) -> None:
    """As by a server's shutdown, or a timeout middleware of the host's."""
    upstream.script = held = Held(b"data: x\n\n")
    app = create_app(MemoryStore(), upstream=upstream.url, settings=None)
    sent = asyncio.Event()
    body: list[dict[str, object]] = [
        {"type": "http.request", "body": b'{"jsonrpc":"2.0","id":1,"method":"server/discover"}'}
    ]

    async def receive() -> dict[str, object]:
        if body:
            return body.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: object) -> None:
        sent.set()

    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.4"},
        "method": "POST",
        "path": "/mcp",
        "query_string": b"",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json"), (b"mcp-protocol-version", b"2026-07-28")],
        "server": None,
    }
    async with lifespan_of(app):
        task = asyncio.create_task(app(scope, receive, send))
        with anyio.fail_after(5):
            await sent.wait()
            task.cancel()
            await held.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(app.state.shadowcat.streams) == 0
