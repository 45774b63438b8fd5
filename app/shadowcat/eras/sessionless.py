"""Requests that need no session, as from revision 2026-07-28 on none does: each stands for itself.

Nothing is added to what the server answers, nothing can be resumed, and a client that leaves has cancelled.
What the proxy does for a stream is to keep a silent one alive, and to end a subscription when it stops.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Final

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from shadowcat.eras.mirrored import check_mirrored
from shadowcat.errors import Stopping
from shadowcat.headers import Headers
from shadowcat.inbound import ClientRequest
from shadowcat.listener import Listener
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.protocol import META_SUBSCRIPTION_ID, is_stateless
from shadowcat.readers import SSEReader, reader_for
from shadowcat.recorder import Recorder
from shadowcat.relay import Relay
from shadowcat.responses import RelayResponse
from shadowcat.sessions import SessionManager
from shadowcat.settings import Settings
from shadowcat.sse import COMMENT, write_event
from shadowcat.stream_names import answer_name
from shadowcat.streams import LiveStreams
from shadowcat.upstream import Media, Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch

_BLANK_LINE: Final = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST: Final = 4


class Sessionless:
    """What is asked of one upstream without a session."""

    def __init__(
        self,
        upstream: Upstream,
        sessions: SessionManager,
        recorder: Recorder,
        streams: LiveStreams,
        settings: Settings,
    ) -> None:
        self.upstream = upstream
        self._sessions = sessions
        self._recorder = recorder
        self._streams = streams
        self._settings = settings

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> RelayResponse:
        """Send the client's request upstream, once, and return the response that relays the answer.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        if is_stateless(request.protocol_version):
            check_mirrored(request)
        ending = _ending(request)
        if ending:
            if self._streams.draining:
                raise Stopping
            watch.harmless = True
        stream = _stream(request) if self._recorder.enabled else None
        session_id = await self._record(request, stream)
        response = await self.upstream.open(prepare_request(request, None, self.upstream))
        try:
            if session_id is None:
                session_id = await self._record(request, stream, response)
        except BaseException:
            await response.aclose()
            raise
        # What it has asked would lie in memory for as long as a stream lasts.
        request.body, request.messages = b"", []
        return self._respond(response, session_id, stream, ending)

    async def _record(
        self, request: ClientRequest, stream: str | None, response: UpstreamResponse | None = None
    ) -> str | None:
        """Record what the client sent; return under which session.

        `None` where that has to wait, or not to be: until the upstream has accepted the credentials.
        """
        if not self._recorder.enabled or not request.messages:
            return None
        credentials, upstream = self._sessions.credentials(request), self.upstream.name
        if response is None:
            session_id = self._recorder.ambient.find(upstream, credentials)
        elif response.status < HTTPStatus.MULTIPLE_CHOICES:
            session_id = self._recorder.ambient.accept(upstream, credentials)
        else:
            return None
        if session_id is not None:
            self._recorder.client_sent(session_id, request.messages, stream)
            await self._recorder.settle()
        return session_id

    def _respond(
        self, response: UpstreamResponse, session_id: str | None, stream: str | None, ending: bytes
    ) -> RelayResponse:
        headers = response_headers(response.headers, None, self._settings)
        reader = None if session_id is None else reader_for(response, self._settings.max_message_bytes)
        relay = Relay(response, reader)
        recorder = self._recorder
        body = relay.body() if session_id is None else relay.recorded(recorder, session_id, stream)
        close = self._streams.counted(response)
        if not _takes_more(response):
            return RelayResponse(response.status, headers, body, close)

        def record_end() -> None:
            if session_id is not None and isinstance(reader, SSEReader):
                recorder.server_sent(session_id, [reader.add(ending)], stream)

        return SessionlessStream(response.status, headers, body, close, self._streams, ending, record_end)


class SessionlessStream(RelayResponse):
    """A stream of events that passes as it came, with comments between events while it is silent."""

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        streams: LiveStreams,
        ending: bytes,
        record_end: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            status: of the response.
            headers: of the response.
            body: the upstream's chunks.
            close: closes the upstream's response.
            streams: where the stream is found meanwhile.
            ending: the message that ends it where the proxy does; empty where only the server can.
            record_end: called when it has.
        """
        super().__init__(status, headers, body, close)
        self._body = body
        self._streams = streams
        self._ending = ending
        self._record_end = record_end
        self._is_ending = False
        self._is_between = True
        """Whether an event has ended and nothing of the next one has come."""
        self._listener: Listener | None = None
        self._reading = anyio.CancelScope()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; return when it has ended."""
        listener = self._listener = Listener(send)
        self._streams.sessionless.add(self)
        try:
            await listener.begin(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            has_ended = False
            if self._ending:
                with self._reading:
                    has_ended = await self._relay(listener)
            else:
                has_ended = await self._relay(listener)
            if not has_ended and not listener.is_gone:
                self._record_end()
                await listener.write(write_event(self._ending))
            await listener.end()
        finally:
            self._streams.sessionless.discard(self)
            await self._close()

    async def _relay(self, listener: Listener) -> bool:
        """Pass on what comes; return whether the server has ended it."""
        tail = b""
        async with aclosing(self._body) as chunks:
            async for chunk in chunks:
                self._is_between = False
                await listener.write(chunk)
                tail = (tail + chunk[-_LONGEST:])[-_LONGEST:]
                self._is_between = tail.endswith(_BLANK_LINE)
                if listener.is_gone or (self._is_ending and self._is_between):
                    return False
        return True

    def keep_alive(self, before: float) -> None:
        """Send a comment where nothing was sent since then (`time.monotonic`)."""
        if self._listener is not None and self._is_between and self._listener.wrote_at <= before:
            self._listener.send_beside(COMMENT)

    def finish(self) -> None:
        """End a subscription with its result, once the event that is on its way is whole.

        "When the server ends a subscription on its own initiative (for example, during shutdown), it SHOULD
        respond to the original request": patterns/subscriptions#graceful-closure. Its client comes back.
        """
        if self._ending:
            self._is_ending = True
            if self._is_between:
                self._reading.cancel()


def _stream(request: ClientRequest) -> str | None:
    """Return a name for the stream of the answers; `None` where there will be none."""
    asked = [message.id for message in request.messages if message.kind == "request"]
    return answer_name(asked) if asked else None


def _ending(request: ClientRequest) -> bytes:
    """Return the message that ends the subscription this request asks for; empty where it asks for none."""
    messages = request.messages
    if len(messages) != 1 or messages[0].kind != "request" or messages[0].method != "subscriptions/listen":
        return b""
    asked = messages[0].id
    result = {"resultType": "complete", "_meta": {META_SUBSCRIPTION_ID: asked}}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": asked, "result": result})


def _takes_more(response: UpstreamResponse) -> bool:
    """Return whether the response is a stream of events that something can be put into."""
    return (
        response.media is Media.SSE
        and response.content_encoding in (b"", b"identity")
        and not any(name == b"content-length" for name, _ in response.headers)
    )
