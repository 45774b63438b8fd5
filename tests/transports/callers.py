"""A caller of a transport, as the proxy calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import httpx2


async def until(holds: Callable[[], bool]) -> None:
    """Return when the condition holds: the loop turns meanwhile."""
    with anyio.fail_after(5):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


class Caller:
    """Calls one URL, and reads what comes."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, url: str) -> None:
        self.transport = transport
        self.url = url

    async def send(
        self, method: str = "POST", body: Any = b"", headers: Any = (), **timeouts: float | None
    ) -> httpx2.Response:
        """Return the response with its body unread."""
        pairs = [("Host", urlsplit(self.url).netloc), *headers]
        if isinstance(body, bytes):
            pairs.append(("Content-Length", str(len(body))))
            body = httpx2.ByteStream(body)
        timeout = {"connect": 5.0, "pool": 5.0, "read": None, "write": None} | timeouts
        request = httpx2.Request(
            method, self.url, headers=pairs, stream=body, extensions={"timeout": timeout}
        )
        return await self.transport.handle_async_request(request)

    @asynccontextmanager
    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        """Give the chunks of a response; close it in the end."""
        response = await self.send(*args, **options)
        stream = cast(httpx2.AsyncByteStream, response.stream)
        try:
            yield aiter(stream)
        finally:
            await stream.aclose()

    async def call(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        """Return the status and the whole body."""
        response = await self.send(*args, **options)
        stream = cast(httpx2.AsyncByteStream, response.stream)
        try:
            return response.status_code, b"".join([chunk async for chunk in stream])
        finally:
            await stream.aclose()


class Upload(httpx2.AsyncByteStream):
    """A body that comes piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.taken += 1
            yield piece
