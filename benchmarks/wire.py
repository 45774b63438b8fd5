"""One client connection: HTTP/1.1 on an asyncio protocol and httptools, nothing in between."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httptools

from . import messages
from .messages import Target

PATIENCE = 15.0
"""Seconds after which an answer is not waited for any longer."""


@dataclass(slots=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Lost(ConnectionError):
    """The connection ended before the answer did."""


@dataclass(eq=False)
class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one request at a time."""

    sent: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set as soon as a byte of an answer's body is there; clear it before you wait for the next."""
    body: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    waiter: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, target: Target, **fields: Any) -> Self:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: cls(**fields), target.host, target.port))[1]

    async def send(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            Lost: there is none.
        """
        self.waiter = asyncio.get_running_loop().create_future()
        self.post(request)
        return await self.waiter

    def post(self, request: bytes) -> None:
        """Send a request and leave it at that."""
        if self.transport.is_closing():
            self.lost("closed before the request was sent")
        else:
            self.sent += 1
            self.transport.write(request)

    def abort(self) -> None:
        """Leave at once, without a goodbye."""
        self.transport.abort()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not say so
        self.parser = httptools.HttpResponseParser(self)
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.lost(f"not HTTP: {error}")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost(str(exc or "closed"))

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body
        if not self.begun.is_set():
            self.begun.set()

    def on_message_complete(self) -> None:
        answer = Answer(self.parser.get_status_code(), self.headers, self.body)
        self.headers, self.body = {}, b""
        self.answered(answer)

    # what becomes of it

    def answered(self, answer: Answer) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(answer)

    def lost(self, reason: str) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(Lost(reason))


async def open_session(connection: Connection, target: Target) -> str:
    """Do the handshake as a client does; the id that all later requests of the session carry.

    Raises:
        Lost: the proxy is in no state for it.
    """
    try:
        return await asyncio.wait_for(_handshake(connection, target), PATIENCE)
    except TimeoutError:
        raise Lost(f"no answer to the handshake in {PATIENCE:g} s") from None


async def _handshake(connection: Connection, target: Target) -> str:
    answer = await connection.send(messages.initialize(target))
    session = answer.headers.get(b"mcp-session-id", b"").decode()
    if answer.status != 200 or not session or b'"protocolVersion"' not in answer.body:
        raise Lost(f"initialize was answered {answer.status} {answer.body[:200]!r}, session id {session!r}")
    accepted = await connection.send(messages.initialized(target, session))
    if accepted.status != 202:
        raise Lost(f"notifications/initialized was answered {accepted.status} {accepted.body[:200]!r}")
    return session


async def fetch(port: int, path: str) -> bytes:
    """One GET on a connection of its own: the body."""
    connection = await Connection.open(Target("127.0.0.1", port))
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n"
        answer = await connection.send(request.encode())
    finally:
        connection.abort()
    return answer.body if answer.status == 200 else b""


async def fetch_json(port: int, path: str) -> dict[str, Any]:
    return dict(json.loads(await fetch(port, path)))


async def until(satisfied: Callable[[], Any], seconds: float, every: float = 0.05) -> bool:
    """Whether `satisfied` (awaited each time) came true within `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await satisfied():
        if loop.time() > end:
            return False
        await asyncio.sleep(every)
    return True
