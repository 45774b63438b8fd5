"""A client's connection to `shadowcat serve`: uvicorn's, with a gap closed."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class ClientConnection(HttpToolsProtocol):
    """Tells every request on the connection that the client has left.

    uvicorn tells the one it has parsed last. Of a client that sends several at once and leaves, the one being
    answered would never know, and its upstream connection would stay for as long as the server likes.
    """

    _answering: Any = None

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
