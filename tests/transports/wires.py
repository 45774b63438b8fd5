"""Both transports on wires of the tests' own: a response comes in exactly the pieces it is given in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import httpcore2
import httpx2

from shadowcat.transports import HTTP1Transport
from shadowcat.transports._connection import Connection

URL = "http://server.example/mcp"


@dataclass
class Outcome:
    """What a caller gets of a response."""

    status: int = 0
    headers: Any = None
    body: bytes = b""
    error: Exception | None = None
    kept: bool = False
    """Whether the connection goes on to carry another request."""

    @property
    def is_whole(self) -> bool:
        return self.error is None

    def __str__(self) -> str:
        return repr(self.error) if self.error else f"{self.status} {self.headers} {self.body!r}"


class Wire(asyncio.Transport):
    """A connection that never was: it keeps what is written, and notes what is asked of it."""

    def __init__(self, connection: Connection, quiet: socket.socket) -> None:
        super().__init__({"socket": quiet})
        self.connection = connection
        self.written = b""
        self.unsent = 0
        self.aborted = False
        self.reading = True
        connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Owner:
    """Notes what a connection tells its pool."""

    def __init__(self) -> None:
        self.freed = 0
        self.lost = 0

    def free(self, connection: Connection) -> None:
        self.freed += 1

    def gone(self, connection: Connection) -> None:
        self.lost += 1


def a_request(method: str = "GET", **options: Any) -> httpx2.Request:
    options.setdefault("headers", [("Host", "server.example")])
    options.setdefault("stream", httpx2.ByteStream(b""))
    return httpx2.Request(method, options.pop("url", URL), **options)


async def through_http1(pieces: Iterable[bytes], method: str = "GET", unsent: int = 0) -> Outcome:
    """Return what our transport makes of a response. The server closes after it.

    Of the request, `unsent` bytes are not sent yet then.
    """
    near, far = socket.socketpair()
    with near, far:
        transport = HTTP1Transport()
        request = a_request(method)
        pool = transport._new_pool(request.url)
        connection = Connection(pool)
        wire = Wire(connection, near)
        pool._connections.add(connection)
        pool._taken = 1
        pool.free(connection)
        answering = asyncio.create_task(_outcome(transport, request))
        await asyncio.sleep(0)
        assert wire.written
        wire.unsent = unsent
        for piece in pieces:
            if not wire.aborted:
                connection.data_received(piece)
                await asyncio.sleep(0)
        if not wire.aborted and not connection.idle_since:
            connection.eof_received()
        outcome = await answering
        outcome.kept = not wire.aborted
        await transport.aclose()
    return outcome


async def through_httpx2(pieces: Iterable[bytes], method: str = "GET") -> Outcome:
    """Return what the stock transport makes of a response."""
    transport = httpx2.AsyncHTTPTransport(verify=False)
    backend = httpcore2.AsyncMockBackend([piece for piece in pieces if piece])
    transport._pool = httpcore2.AsyncConnectionPool(network_backend=backend)
    outcome = await _outcome(transport, a_request(method))
    await transport.aclose()
    return outcome


async def _outcome(transport: httpx2.AsyncBaseTransport, request: httpx2.Request) -> Outcome:
    outcome = Outcome()
    try:
        response = await transport.handle_async_request(request)
        stream = cast(httpx2.AsyncByteStream, response.stream)
        outcome.status = response.status_code
        outcome.headers = [(name.lower(), value) for name, value in response.headers.raw]
        async for chunk in stream:
            assert chunk
            outcome.body += chunk
        await stream.aclose()
    except httpx2.TransportError as exc:
        outcome.error = exc
    return outcome
