"""Requests that need no session, as from revision 2026-07-28 on none does: each stands for itself.

Nothing is added to what the server answers, nothing can be resumed, and a client that leaves has cancelled.
What the proxy does for a stream is to keep a silent one alive, and to end a subscription when it stops.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext
from http import HTTPStatus
from typing import Final

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Send

from shadowcat.eras.mirrored import check_mirrored
from shadowcat.errors import Stopping
from shadowcat.headers import Headers
from shadowcat.inbound import ClientRequest
from shadowcat.listener import quietly
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.principal import Credentials
from shadowcat.protocol import META_SUBSCRIPTION_ID, is_stateless
from shadowcat.readers import SSEReader, read_whole, reader_for
from shadowcat.recorder import Recorder
from shadowcat.relay import Relay
from shadowcat.responses import RelayResponse, WholeResponse
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
        self, upstream: Upstream, recorder: Recorder, streams: LiveStreams, settings: Settings
    ) -> None:
        self.upstream = upstream
        self._recorder = recorder
        self._streams = streams
        self._settings = settings
        self._credential_names = settings.credential_names

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> Response:
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
            # What it has asked would lie in memory for as long as a stream lasts.
            request.body, request.messages = b"", []
            return await self._respond(response, session_id, stream, ending)
        except BaseException:
            await response.aclose()
            raise

    async def _record(
        self, request: ClientRequest, stream: str | None, response: UpstreamResponse | None = None
    ) -> str | None:
        """Record what the client sent; return under which session.

        `None` where that has to wait, or not to be: until the upstream has accepted the credentials.
        """
        if not self._recorder.enabled or not request.messages:
            return None
        credentials = Credentials.of(request.headers, self._credential_names)
        if response is None:
            session_id = self._recorder.ambient.find(self.upstream.name, credentials)
        elif response.status < HTTPStatus.MULTIPLE_CHOICES:
            session_id = self._recorder.ambient.accept(self.upstream.name, credentials)
        else:
            return None
        if session_id is not None:
            self._recorder.client_sent(session_id, request.messages, stream)
            if self._recorder.durable_first:
                await self._recorder.settle()
        return session_id

    async def _respond(
        self, response: UpstreamResponse, session_id: str | None, stream: str | None, ending: bytes
    ) -> Response:
        headers = response_headers(response.headers, None, self._settings)
        # JSON is recorded under the name as well: without a session, a request's id is others' too.
        recorder, limit = self._recorder, self._settings.max_message_bytes
        if response.media is not Media.SSE and (whole := response.take_whole()) is not None:
            if session_id is not None:
                await recorder.pass_on(session_id, read_whole(response, whole, limit), stream)
            return WholeResponse(response.status, headers, whole)
        reader = None if session_id is None else reader_for(response, limit)
        relay = Relay(response, reader)
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
        """Whether nothing of an event is on its way: neither sent in part, nor being sent."""
        self._send: Send
        self._sent_at = math.inf
        self._comment: asyncio.Task[None] | None = None
        self._reading = anyio.CancelScope() if ending else None  # 5 µs

    async def stream_response(self, send: Send) -> None:
        """Send it; return when it has ended."""
        self._send = send
        self._streams.sessionless.add(self)
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            has_ended = False
            with self._reading or nullcontext():
                has_ended = await self._relay()
            if not has_ended:
                self._record_end()
                await self._push(write_event(self._ending))
            await self._push(b"", more=False)
        finally:
            self._streams.sessionless.discard(self)

    async def _relay(self) -> bool:
        """Pass on what comes; return whether the server has ended it."""
        tail = b""
        self._sent_at = time.monotonic()
        async for chunk in self._body:
            self._is_between = False
            await self._push(chunk)
            tail = (tail + chunk[-_LONGEST:])[-_LONGEST:]
            self._is_between = tail.endswith(_BLANK_LINE)
            if self._is_ending and self._is_between:
                await self._body.aclose()
                return False
        return True

    async def _push(self, data: bytes, *, more: bool = True) -> None:
        if self._comment is not None:
            await asyncio.wait([self._comment])
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent_at = time.monotonic()

    def keep_alive(self, before: float) -> None:
        """Send a comment where nothing was sent since then (`time.monotonic`)."""
        is_busy = self._comment is not None and not self._comment.done()
        if self._is_between and not is_busy and self._sent_at <= before:
            message = {"type": "http.response.body", "body": COMMENT, "more_body": True}
            self._comment = asyncio.ensure_future(quietly(self._send(message)))
            self._sent_at = time.monotonic()

    def finish(self) -> None:
        """End a subscription with its result, once the event that is on its way is whole.

        "When the server ends a subscription on its own initiative (for example, during shutdown), it SHOULD
        respond to the original request": patterns/subscriptions#graceful-closure. Its client comes back.
        """
        if self._reading is not None:
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
    is_plain = response.media is Media.SSE and response.content_encoding in (b"", b"identity")
    return is_plain and all(name != b"content-length" for name, _ in response.headers)
