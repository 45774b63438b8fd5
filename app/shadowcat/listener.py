"""One client's end of a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from starlette.types import Message, Send

from shadowcat.begun import Begun
from shadowcat.flag import Flag


class Listener:
    """A client's response, as the place where a stream's events go. It ends when the stream does, when its
    client leaves, or when another client's response takes the stream over."""

    __slots__ = ("_beside", "_send", "_waiting", "is_gone", "over", "since", "wrote_at")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: asyncio.Task[Any] | None = None
        self._beside: asyncio.Task[None] | None = None
        self.is_gone = False
        """Whether nothing more is to be sent."""
        self.over = Flag()
        """Set when nothing more will come."""
        self.since = time.time()
        """When it began, to be compared with those at other replicas."""
        self.wrote_at = time.monotonic()

    def begin(self, head: Message) -> Awaitable[None]:
        """Send the response's head."""
        return self._push(head)

    def write(self, data: bytes) -> Awaitable[None]:
        """Send bytes, waiting as long as the client is slow; nothing where it is gone."""
        return self._push({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """End the response as one that is whole."""
        await self._push({"type": "http.response.body", "body": b"", "more_body": False})
        self.leave()

    def leave(self) -> None:
        """Send nothing more; give up what is being sent."""
        self.is_gone = True
        self.over.set()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def hand_over(self) -> None:
        """End the response as soon as its client takes that, and send nothing else any more."""
        if not self.is_gone:
            self.leave()
            self._send_soon(b"", more=False)

    def send_beside(self, data: bytes) -> None:
        """Send bytes that are no part of the stream, unless something else is on its way."""
        is_busy = self._waiting is not None or (self._beside is not None and not self._beside.done())
        if not is_busy and not self.is_gone:
            self._send_soon(data, more=True)

    async def settle(self) -> None:
        """Return when nothing is on its way any more."""
        if self._beside is not None:
            await asyncio.wait([self._beside])
            self._beside = None

    def _send_soon(self, data: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": more}
        self._beside = asyncio.ensure_future(quietly(self._send(message)))
        self.wrote_at = time.monotonic()

    async def _push(self, message: Message) -> None:
        if self._beside is not None:
            await self.settle()
        if self.is_gone:
            return
        self.wrote_at = time.monotonic()
        try:
            sending = Begun(self._send(message))
            if not sending.is_done:
                await self._wait_for(sending)
        except OSError:  # how servers of ASGI 2.4 say that the client has left
            self.leave()

    async def _wait_for(self, sending: Begun[None]) -> None:
        """Wait for a client that is slow, until that is given up."""
        task = self._waiting = asyncio.current_task()
        try:
            await sending
        except asyncio.CancelledError:
            if not self.is_gone or task is None or task.uncancel():
                raise
        finally:
            self._waiting = None


async def quietly(sending: Awaitable[None]) -> None:
    """Send to a client that may have left."""
    with suppress(OSError):
        await sending
