"""A client's connection to `shadowcat serve`: uvicorn's, with a gap closed, and fewer system calls."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST: Final = 64 * 1024
"""Bytes that wait for the end of a turn of the loop. More leave at once, so that a slow client is noticed."""


class OneWrite:
    """A transport that writes once what one turn of the loop has brought: a head and its body leave together.

    uvicorn writes them apart, and a write is a system call: the dearest thing that a small response needs.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write the bytes, at the end of this turn of the loop."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _MOST:
            self._flush()

    def _flush(self) -> None:
        if self._pieces and not self._transport.is_closing():
            self._transport.write(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0

    def is_closing(self) -> bool:
        """Return whether it is closed, or will be when all is written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close it when all is written."""
        self._flush()
        self._transport.close()


class ClientConnection(HttpToolsProtocol):
    """Tells every request on the connection that the client has left.

    uvicorn tells the one it has parsed last. Of a client that sends several at once and leaves, the one being
    answered would never know, and its upstream connection would stay for as long as the server likes.
    """

    # One attribute more than Python keeps without a dictionary of each object's own: 1.4 kB a connection.
    __slots__ = ("_answering",)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        self._answering: Any = None
        super().connection_made(cast(asyncio.Transport, OneWrite(transport)))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take it that the client has left."""
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)
