"""One request's response, as far as it has come: the connection fills it, the caller reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from shadowcat.transports._connection import Connection


class Exchange(httpx2.AsyncByteStream):
    """The head and the body of a response; iterated, it gives the body as it came.

    What arrives while nobody waits is handed on as one chunk. A body that breaks off raises after its last
    byte, and so does one that is iterated after `aclose` before its end.
    """

    def __init__(self, connection: Connection, method: str, read_timeout: float | None) -> None:
        self.connection: Connection | None = connection
        """Until the last byte is parsed: then it is somebody else's."""
        self.method = method
        self.status = 0
        """0 until the head is here."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.size = 0
        """Bytes that are waiting."""
        self._chunks: list[bytes] = []
        self._read_timeout = read_timeout
        self._complete = False
        self._error: httpx2.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        self._chunks.append(chunk)
        self.size += len(chunk)

    def wake(self) -> None:
        """Let whoever waits look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def complete(self) -> None:
        """Take it that no more comes."""
        self._complete = True
        self.connection = None
        self.wake()

    def fail(self, error: httpx2.TransportError) -> None:
        """Take it that it breaks off here."""
        self._error = error
        self.connection = None
        self.wake()

    @property
    def refuses(self) -> bool:
        """Whether the server need not see the rest of the request any more.

        "If the client sees a response that indicates the server does not wish to receive the message body and
        is closing the connection, the client SHOULD immediately cease transmitting the body":
        https://www.rfc-editor.org/rfc/rfc9112#section-9.5
        """
        return self.status >= 300 or self.connection is None

    async def head(self) -> None:
        """Return when the head is here.

        Raises:
            httpx2.RemoteProtocolError, httpx2.ReadError: it does not come any more.
            httpx2.ReadTimeout: it takes too long.
        """
        while not self.status:
            if self._error is not None:
                raise self._error
            await self.wait(self._read_timeout, httpx2.ReadTimeout)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunks = self._chunks
        while not chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            await self.wait(self._read_timeout, httpx2.ReadTimeout)
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        if self.connection is not None:
            self.connection.resume_reading()
        return chunk

    def take_whole(self) -> bytes | None:
        """Return the body where all of it has come, as that of a short answer does with its head."""
        if not self._complete or self._error is not None:
            return None
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    async def wait(self, timeout: float | None, late: type[httpx2.TimeoutException]) -> None:
        """Return when something has happened. Cancelled or too late, the connection is closed."""
        connection = self.connection
        # The connection knows it, and to ask for it is a system call in Python 3.11: 5 % of an event.
        loop = asyncio.get_running_loop() if connection is None else connection.loop
        self._waiter = loop.create_future()
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, self.give_up, late(f"The server took longer than {timeout} s."))
        try:
            await self._waiter
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def give_up(self, reason: httpx2.TransportError) -> None:
        """Close the connection, unless the response has come whole."""
        connection = self.connection
        if connection is not None:
            self.fail(reason)
            connection.close()

    async def aclose(self) -> None:
        """Drop what has not been read, and the connection with it where the response is not complete."""
        if self._chunks:
            self._chunks.clear()
            self._error = httpx2.ReadError("The response was closed before it was read.")
        if self.connection is not None:
            self.give_up(httpx2.ReadError("The response was closed before its end."))
