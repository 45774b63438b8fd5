"""HTTP and event streams as the client of the harness reads them: by hand, so that nothing mends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.raw import raw_client, raw_request


class Refused(Exception):
    """No connection: nothing was sent."""


class Broken(Exception):
    """The connection ended before the response did."""


@dataclass
class Event:
    """One event of a stream."""

    id: str | None = None
    data: str | None = None
    retry: int | None = None


class Response:
    """The head of a response, and its body as it comes."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._reader = reader

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body.

        Raises:
            Broken: it ended too early.
        """
        try:
            if "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
                return
            if self.headers.get("transfer-encoding") != "chunked":
                return
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                chunk = await self._reader.readexactly(size + 2)
                await self.may_read.wait()
                yield chunk[:-2]
            await self._reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            raise Broken from exc

    async def json(self) -> Any:
        """Return the whole body; `None` where it is no JSON."""
        body = b"".join([chunk async for chunk in self.chunks()])
        try:
            return json.loads(body)
        except ValueError:
            return None

    async def events(self) -> AsyncIterator[Event]:
        """Iterate over the events that are whole.

        Raises:
            Broken: the connection ended before the stream did.
        """
        rest = b""
        async for chunk in self.chunks():
            *blocks, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for block in blocks:
                yield _event(block.decode())
        if rest:
            raise Broken


def _event(block: str) -> Event:
    event = Event()
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event.id = value
        elif name == "data":
            event.data = value if event.data is None else f"{event.data}\n{value}"
        elif name == "retry":
            event.retry = int(value)
    return event


class Line:
    """One connection, which can be cut and read slowly from outside."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.was_cut = False
        self.response: Response | None = None
        self._writer = writer

    def cut(self) -> None:
        """Break it."""
        self.was_cut = True
        self._writer.transport.abort()


@asynccontextmanager
async def sent(
    url: str, method: str, message: Any = None, **headers: str
) -> AsyncIterator[tuple[Line, asyncio.StreamReader]]:
    """Send a request on a connection of its own.

    Raises:
        Refused: there is none.
    """
    connecting = raw_client(url, receive_buffer=2**14)
    try:
        reader, writer = await connecting.__aenter__()
    except ConnectionError as exc:
        raise Refused from exc
    try:
        writer.write(raw_request(url, method, message, **headers))
        yield Line(writer), reader
    finally:
        await connecting.__aexit__(None, None, None)


async def receive(line: Line, reader: asyncio.StreamReader) -> Response:
    """Return the response when its head is here.

    Raises:
        Broken: the connection ended before.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError) as exc:
        raise Broken from exc
    first, *lines = head.split("\r\n")[:-2]
    pairs = (each.partition(":") for each in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    line.response = Response(reader, int(first.split(" ")[1]), headers)
    return line.response
