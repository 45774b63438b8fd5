"""Requests of the proxy's own to an upstream, made to recover a session for a client's request."""

from __future__ import annotations

from typing import Final

import anyio

from shadowcat import protocol
from shadowcat.counters import Reason
from shadowcat.errors import UpstreamError
from shadowcat.headers import HOP_BY_HOP, Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.readers import reader_for
from shadowcat.sse import CONTENT_TYPE
from shadowcat.upstream import CLOSE_TIMEOUT, OutboundRequest, Upstream, UpstreamResponse
from shadowcat.watch import spared
from shadowcat_stores import MessageEnvelope

# What the client said of its own request. The rest says who it is, and goes along.
_OF_THE_REQUEST: Final = HOP_BY_HOP.union(
    {
        b"accept",
        b"accept-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"mcp-method",
        b"mcp-name",
        protocol.LAST_EVENT_ID,
        protocol.PROTOCOL_VERSION,
        protocol.SESSION_ID,
    }
)


class Recovery:
    """Sends requests with the credentials of one client request. They are counted as `recover`, but for a
    stream that the client asks for."""

    def __init__(self, upstream: Upstream, request: ClientRequest, limit: int) -> None:
        self._upstream = upstream
        self._limit = limit
        self._query = request.query
        self._version = request.header(protocol.PROTOCOL_VERSION)
        self._headers: Headers = [(b"host", upstream.host)]
        for name, value in end_to_end(request.headers, _OF_THE_REQUEST):
            is_ours = name == b"origin" and request.is_own_origin
            self._headers.append((name, upstream.origin if is_ours else value))
        self._asked = 0
        self.begun: str | None = None
        """The upstream session that these requests have begun."""

    async def ask(
        self, method: str, params: bytes, session_id: str | None
    ) -> tuple[UpstreamResponse, MessageEnvelope | None]:
        """Send a JSON-RPC request; return the response and the message that answers it, if it has one.

        The response is closed; what `peek` had read of it can be read still.

        Raises:
            UpstreamError: as `Upstream.open` does, or the answer broke off.
        """
        self._asked += 1
        message_id = f"shadowcat-{self._asked}"
        body = b'{"jsonrpc":"2.0","id":"%b","method":"%b","params":%b}'
        response = await self._post(body % (message_id.encode(), method.encode(), params), session_id)
        if session_id is None:
            self.begun = response.session_id
        try:
            if response.status >= 300:
                await response.peek(LONGEST_COMPLAINT)
            return response, await self._answer(response, message_id)
        finally:
            await response.aclose()

    async def open_stream(
        self, session_id: str | None, after: str | None, reason: Reason
    ) -> UpstreamResponse:
        """Open the session's GET stream, or the one that has the event of this id, from there on.

        Raises:
            UpstreamError: as `Upstream.open` does.
        """
        headers = [*self._of(session_id), (b"accept", CONTENT_TYPE)]
        if session_id is None and self._version is not None:
            headers.append((protocol.PROTOCOL_VERSION, self._version))
        if after is not None:
            headers.append((protocol.LAST_EVENT_ID, after.encode()))
        return await self._upstream.open(OutboundRequest("GET", headers, b"", self._query, reason))

    async def tell(self, method: str, session_id: str) -> int:
        """Send a JSON-RPC notification; return the status that answers it.

        Raises:
            UpstreamError: as `Upstream.open` does.
        """
        response = await self._post(b'{"jsonrpc":"2.0","method":"%b"}' % method.encode(), session_id)
        await response.aclose()
        return response.status

    async def end(self, session_id: str) -> None:
        """End an upstream session that nobody is going to use. Not cancelled; no failure is told."""
        with spared(), anyio.move_on_after(CLOSE_TIMEOUT):
            outbound = OutboundRequest("DELETE", self._of(session_id), b"", self._query, "recover")
            try:
                response = await self._upstream.open(outbound)
            except UpstreamError:
                return
            await response.aclose()

    async def _post(self, body: bytes, session_id: str | None) -> UpstreamResponse:
        headers = [
            *self._of(session_id),
            (b"accept", b"application/json, text/event-stream"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        return await self._upstream.open(OutboundRequest("POST", headers, body, self._query, "recover"))

    def _of(self, session_id: str | None) -> Headers:
        """Return the headers of a request in the session; the revision is agreed on once there is one."""
        if session_id is None:
            return self._headers
        headers = [*self._headers, (protocol.SESSION_ID, session_id.encode("latin-1"))]
        if self._version is not None:
            headers.append((protocol.PROTOCOL_VERSION, self._version))
        return headers

    async def _answer(self, response: UpstreamResponse, message_id: str) -> MessageEnvelope | None:
        reader = reader_for(response, self._limit)
        if reader is None:
            return None
        size = 0
        chunks = aiter(response)
        while size <= self._limit:
            chunk = await anext(chunks, None)
            for arrival in reader.end() if chunk is None else reader.feed(chunk):
                for message in arrival.messages:
                    if message.kind in ("response", "error") and message.id == message_id:
                        return message
            if chunk is None:
                break
            size += len(chunk)
        return None


LONGEST_COMPLAINT: Final = 4096
"""Bytes of a refusal that are looked at. No server needs more to say that it knows no such session."""
