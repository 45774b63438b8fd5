"""The upstream streams that are open at this moment."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio


class LiveStream:
    """One open response: whose it is, and how to end it."""

    __slots__ = ("_ended", "_waiting", "session_id", "standalone")

    def __init__(self, session_id: str | None, standalone: bool) -> None:
        self.session_id = session_id
        self.standalone = standalone
        """Whether it is a session's GET stream, which answers no request and may end at any time."""
        self._ended = False
        self._waiting: anyio.CancelScope | None = None

    def end(self) -> None:
        """Let `until_ended` finish, at once where it waits for the upstream."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def until_ended(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Iterate over the body until it ends or is told to; never between a chunk's coming and its going."""
        while not self._ended:
            chunk = None
            with anyio.CancelScope() as self._waiting:
                chunk = await anext(body, None)
            self._waiting = None
            if chunk is None:
                return
            yield chunk


class LiveStreams:
    """All of them. Empty again when every client has gone: the tests hold it to that."""

    def __init__(self) -> None:
        self._open: set[LiveStream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: LiveStream) -> None:
        """Count the stream as open."""
        self._open.add(stream)

    def discard(self, stream: LiveStream) -> None:
        """Count it as closed. A second time does nothing."""
        self._open.discard(stream)

    def session_ids(self) -> set[str]:
        """Return the sessions that have a stream open."""
        return {stream.session_id for stream in self._open if stream.session_id is not None}

    def end_standalone(self) -> None:
        """End the streams that answer no request: a server that is stopping need not wait for them."""
        for stream in self._open:
            if stream.standalone:
                stream.end()
