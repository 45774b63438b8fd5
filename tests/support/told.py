"""An upstream that sends on its streams what the test tells it to, and clients that leave and come back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from shadowcat.sse import SSEBlock
from tests.support.events import Events, message
from tests.support.proxying import Proxied, request
from tests.support.upstream import Connection, Received

POST = request("tools/call", "c-1")


def progress(number: int) -> bytes:
    return json.dumps(
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"n": number}}
    ).encode()


class Told:
    """Sends on a stream what the test tells it to; knows what it was asked."""

    def __init__(self, ids: bool = False) -> None:
        self.ids = ids
        self.streams: list[Connection] = []
        self.asked: list[Received] = []
        self.resumed_with: list[bytes | None] = []
        self.news = anyio.Event()
        self.left = anyio.Event()
        self.resume: list[tuple[int, bytes]] | None = None
        """What a GET is answered with; `None` for 405."""

    async def __call__(self, received: Received, connection: Connection) -> None:
        self.asked.append(received)
        if received.method == "DELETE":
            await connection.respond()
            return
        if received.method == "POST" and "id" not in received.message:
            await connection.respond(status="202 Accepted")
            return
        if received.method == "GET":
            self.resumed_with.append(received.header(b"last-event-id"))
            if self.resume is None:
                await connection.respond(status="405 Method Not Allowed")
                return
        await connection.start_stream()
        self.streams.append(connection)
        if received.method == "GET":
            for number, data in self.resume or ():
                await self.send(number, data)
        self.news.set()
        self.news = anyio.Event()
        await connection.peer_left()
        self.left.set()

    async def send(self, number: int, data: bytes) -> None:
        await self.streams[-1].chunk(
            (b"id: e-%d\n" % number if self.ids else b"") + b"data: " + data + b"\n\n"
        )

    async def opened(self, count: int) -> None:
        while len(self.streams) < count:
            await self.news.wait()


def cancelled(request_id: object = "c-1") -> dict[str, object]:
    """Return the message with which a client gives its request up."""
    params = {"requestId": request_id}
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}


@asynccontextmanager
async def calling(proxy: Proxied, **headers: str) -> AsyncIterator[Events]:
    async with proxy.stream("POST", POST, **headers) as response:
        assert response.status_code == 200
        yield Events(response)


@asynccontextmanager
async def resuming(proxy: Proxied, event_id: str | None, **headers: str) -> AsyncIterator[Events]:
    extra = {} if event_id is None else {"Last-Event-ID": event_id}
    async with proxy.stream("GET", **extra, **headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response)


async def attached(proxy: Proxied) -> None:
    """Return when somebody listens to each stream."""
    while not all(stream.listener is not None for stream in proxy.service.streams.all()):
        await anyio.lowlevel.checkpoint()


async def detached(proxy: Proxied) -> None:
    """Return when nobody listens to any stream."""
    while any(stream.listener is not None for stream in proxy.service.streams.all()):
        await anyio.lowlevel.checkpoint()


async def claimed(proxy: Proxied) -> None:
    """Return when the others can know who reads the streams."""
    while not all(stream.token for stream in proxy.service.streams.all()):
        await anyio.lowlevel.checkpoint()


async def recorded(proxy: Proxied, count: int) -> None:
    """Return when so many events of the stream are recorded."""
    while True:
        (stream,) = proxy.service.streams.all()
        if stream.tap.position >= count:
            return
        await anyio.lowlevel.checkpoint()


def numbers(blocks: Sequence[SSEBlock | None]) -> list[Any]:
    return [
        each["params"]["n"] if "params" in each else each.get("result", each.get("error"))
        for each in map(message, blocks)
    ]
