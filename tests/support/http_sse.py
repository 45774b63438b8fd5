"""HTTP+SSE (2024-11-05): a server on the scripted upstream, and a client of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio
import httpx2

from shadowcat.sse import SSEBlock
from tests.support.events import Events, message
from tests.support.proxying import INITIALIZE, Proxied
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result

RESULT = {**INITIALIZE_RESULT, "protocolVersion": "2024-11-05", "capabilities": {"tools": {}}}


@dataclass
class SSEServer:
    """Answers `initialize`, and each request not in `kept` with its params, on its session's stream."""

    upstream: ScriptedUpstream
    endpoint: Callable[[int], bytes] = lambda number: b"event: endpoint\r\ndata: %b\r\n\r\n" % path(number)
    """The bytes that a stream begins with."""
    streams: dict[int, Connection] = field(default_factory=dict)
    posted: list[Received] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    """Methods of requests that are not answered."""
    left: anyio.Event = field(default_factory=anyio.Event)
    """Set when a stream was closed by the proxy."""
    opened: int = 0
    refusal: tuple[str, bytes] | None = None
    """Status and body of what POSTs are answered."""

    def __post_init__(self) -> None:
        self.upstream.url = urljoin(self.upstream.url, "/v1/sse")
        self.upstream.handshake = self.answer

    async def answer(self, received: Received, connection: Connection) -> None:
        if received.method == "GET" and urlsplit(received.target).path == "/v1/sse":
            await self._stream(connection)
        elif received.method == "POST" and received.target.startswith("/v1/messages/?n="):
            await self._take(received, connection)
        else:
            await connection.respond(b"no", ("Allow", "GET"), status="405 Method Not Allowed")

    async def _stream(self, connection: Connection) -> None:
        self.opened += 1
        number = self.opened
        self.streams[number] = connection
        await connection.start_stream(("Cache-Control", "no-store"))
        if begin := self.endpoint(number):
            await connection.chunk(begin)
        await connection.peer_left()
        del self.streams[number]
        self.left.set()

    async def _take(self, received: Received, connection: Connection) -> None:
        self.posted.append(received)
        stream = self.streams.get(int(received.target.partition("=")[2]))
        status, body = self.refusal or ("202 Accepted", b"Accepted")
        if stream is None:
            status, body = "404 Not Found", b"Could not find session"
        await connection.respond(body, ("Content-Type", "text/plain; charset=utf-8"), status=status)
        sent = received.message
        if stream is not None and not self.refusal and "id" in sent and sent.get("method") not in self.kept:
            is_first = sent["method"] == "initialize"
            await self.say(stream, result(sent["id"], RESULT if is_first else sent.get("params")))

    async def say(self, stream: Connection, data: bytes) -> None:
        await stream.chunk(b"event: message\r\ndata: %b\r\n\r\n" % data)


def path(number: int) -> bytes:
    return b"/v1/messages/?n=%d" % number


@dataclass
class SSEClient:
    """A client with its stream open, and the address that it was given."""

    proxy: Proxied
    events: Events
    endpoint: str
    session_id: str
    headers: dict[str, str]

    async def post(self, sent: Any, at: Proxied | None = None, **headers: str) -> httpx2.Response:
        """Post to the address, or to the same path at another replica."""
        base = self.proxy.base if at is None else at.base
        extra = {**self.headers, "Content-Type": "application/json", **headers}
        content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        return await self.proxy.client.post(base + self.endpoint, content=content, headers=extra)

    async def begin(self, at: Proxied | None = None) -> SSEBlock | None:
        """Initialize, and return the event that answers."""
        assert (await self.post(INITIALIZE, at)).status_code == 202
        answer = await self.events.next()
        assert (await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})).status_code == 202
        assert message(answer)["id"] == INITIALIZE["id"]
        return answer


@asynccontextmanager
async def listening(proxy: Proxied, **headers: str) -> AsyncIterator[SSEClient]:
    """Open the stream, and read its first event."""
    async with proxy.stream("GET", **headers) as response:
        assert response.status_code == 200, await response.aread()
        events = Events(response)
        first = await events.next()
        assert first is not None
        assert first.data is not None
        assert first.event == "endpoint"
        endpoint = first.data.decode()
        yield SSEClient(proxy, events, endpoint, endpoint.partition("?session_id=")[2], headers)


async def ended(proxy: Proxied) -> None:
    """Return when no stream is open at the proxy any more."""
    while len(proxy.service.streams):
        await anyio.lowlevel.checkpoint()
