"""The path of a request: from the client's message to the one upstream stream and back."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Final

import anyio

from shadowcat import protocol
from shadowcat.counters import Counters, Reason
from shadowcat.envelope import cancelled_id, read_envelopes
from shadowcat.errors import StoreDown
from shadowcat.gets import Gets
from shadowcat.headers import Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.live_responses import LiveResponse, StreamResponse
from shadowcat.readers import Arrival, Reader, reader_for
from shadowcat.recorder import Recorder
from shadowcat.replay import NAME_BYTES
from shadowcat.responses import RelayResponse
from shadowcat.sessions import SessionManager, is_initialize
from shadowcat.settings import Settings
from shadowcat.sse import CONTENT_TYPE
from shadowcat.streams import LiveStream, LiveStreams, Reopen
from shadowcat.tap import EventTap, minted
from shadowcat.upstream import Media, OutboundRequest, Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch
from shadowcat_stores import GET_STREAM, JsonRpcId, MessageEnvelope, Session, StoreError

logger = logging.getLogger("shadowcat")

_MOST_HELD: Final = 100
"""Events before the answer to `initialize` that are held back with it."""

# Rewritten for the upstream's side: its own address, its own session id, the length of what we send.
_REPLACED: Final = frozenset({b"host", b"content-length", b"expect"})

# What a request of our own says otherwise than the client's, whose headers it has for the rest.
_OF_GET: Final = frozenset({b"accept", protocol.LAST_EVENT_ID})
_OF_POST: Final = frozenset(
    {b"accept", b"accept-encoding", b"content-length", b"content-type", protocol.LAST_EVENT_ID}
)
_ACCEPT_POST: Final = b"application/json, text/event-stream"
_STREAM_HEADERS: Final = (
    (b"content-type", CONTENT_TYPE),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Proxy:
    """Forwards the requests of one upstream's clients: each becomes one upstream request, or none."""

    def __init__(
        self,
        upstream: Upstream,
        sessions: SessionManager,
        recorder: Recorder,
        streams: LiveStreams,
        gets: Gets,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self.upstream = upstream
        self.sessions = sessions
        self._recorder = recorder
        self._streams = streams
        self._gets = gets
        self._settings = settings
        self._counters = counters

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> RelayResponse:
        """Send the client's request upstream, once, and return the response that relays the answer.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        self._counters.client_requests += 1
        if request.method == "POST":
            request.messages = read_envelopes(request.body)
        session = await self.sessions.resolve(request)
        stream = GET_STREAM if request.method == "GET" else secrets.token_urlsafe(NAME_BYTES)
        if session is not None and self._recorder.enabled:
            if request.method == "GET" and (answer := await self._get(request, session)) is not None:
                return answer
            # In revisions with sessions a client that is lost has cancelled nothing.
            watch.patience = self._settings.adopt_seconds if request.method == "POST" else 0.0
            self._recorder.client_sent(session.id, request.messages, stream if _asked(request) else None)
            await self._recorder.settle()
        response = await self.upstream.open(prepare_request(request, session, self.upstream))
        try:
            relay = _Relay(response, self._reader(session, request, response))
            if session is not None:
                # The upstream has processed it: that its client has left by now must not undo our part.
                with anyio.CancelScope(shield=True):
                    await self._settle(session, request, response)
            elif is_initialize(request) and not protocol.is_stateless(request.protocol_version):
                session = await self._begin(request, response, relay, stream)
            return self._respond(request, session, response, relay, stream)
        except BaseException:
            await response.aclose()
            raise

    async def _settle(self, session: Session, request: ClientRequest, response: UpstreamResponse) -> None:
        """Keep what the answer says of the session and its streams."""
        await self.sessions.settle(session, request, response)
        if request.messages and response.media is Media.OTHER:
            # Nothing but the head tells the client that it may go on: 202 has no body.
            await self._recorder.settle(ends_turn_of=session.id)
        if response.status >= 300:
            return
        if request.method == "DELETE":
            self._gets.forget(session.id)
            for stream in self._streams.of(session.id):
                stream.drop()
        for message in request.messages:
            if message.method == "notifications/cancelled":
                for stream in self._streams.of(session.id):
                    stream.cancel(cancelled_id(message.raw))

    async def _get(self, request: ClientRequest, session: Session) -> RelayResponse | None:
        """Return the session's GET stream, or the stream that the client comes back for; `None` where it is
        the upstream's to know which one that is."""
        if not self.sessions.has_accepted(session, request):
            # Nothing is shown to a credential that the upstream has not seen.
            refusal = await self._vouch(request, session)
            if refusal is not None:
                return refusal
        reopen = self._reopening(request, session)
        headers = [*_STREAM_HEADERS, (protocol.SESSION_ID, session.id.encode("latin-1"))]
        try:
            if request.last_event_id:
                return await self._gets.resume(session, request.last_event_id, headers, reopen)
            found = await self._gets.open(session, headers, reopen)
        except StoreError as exc:
            raise StoreDown(f"The session store does not answer: {exc}") from exc
        if isinstance(found, LiveResponse):
            return found
        if isinstance(found, UpstreamResponse):
            return self._respond(request, session, found, _Relay(found, None), None)
        headers = response_headers(found.headers, session, self._settings)
        return RelayResponse(found.status, headers, _once(found.body), _nothing)

    async def _vouch(self, request: ClientRequest, session: Session) -> RelayResponse | None:
        """Ask the upstream whether it takes the request's credential; return its answer where it does not."""
        ask = self._headers(request, session, _OF_GET)
        body = b'{"jsonrpc":"2.0","id":"shadowcat-%b","method":"ping"}' % secrets.token_hex(8).encode()
        ask += [(b"content-type", b"application/json"), (b"accept", _ACCEPT_POST)]
        ask.append((b"content-length", b"%d" % len(body)))
        response = await self.upstream.open(OutboundRequest("POST", ask, body, reason="recover"))
        if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self._respond(request, session, response, _Relay(response, None), None)
        try:
            await self.sessions.settle(session, request, response)
        finally:
            await response.aclose()
        return None

    def _reopening(self, request: ClientRequest, session: Session) -> Reopen:
        """Return what opens a stream of the session upstream with the credentials of this request."""

        async def reopen(after: str | None, reason: Reason = "recover") -> UpstreamResponse:
            current = await self.sessions.current(session)
            ask = self._headers(request, current, _OF_POST)
            ask.append((b"accept", CONTENT_TYPE))
            if after is not None:
                ask.append((protocol.LAST_EVENT_ID, after.encode()))
            return await self.upstream.open(OutboundRequest("GET", ask, query=request.query, reason=reason))

        return reopen

    def _headers(self, request: ClientRequest, session: Session, drop: frozenset[bytes]) -> Headers:
        return [
            pair for pair in prepare_request(request, session, self.upstream).headers if pair[0] not in drop
        ]

    def _reader(
        self, session: Session | None, request: ClientRequest, response: UpstreamResponse
    ) -> Reader | None:
        wanted = session is not None and self._recorder.enabled
        if wanted or is_initialize(request):
            return reader_for(response, self._settings.max_message_bytes)
        return None

    async def _begin(
        self, request: ClientRequest, response: UpstreamResponse, relay: _Relay, stream: str
    ) -> Session | None:
        """Store the session before the first byte of its `initialize` answer leaves.

        The answer is read up to its message for that: it says whether there is a session, and its revision.
        """
        if response.status >= 300:
            self._hint(response)
        answer = await relay.hold_until_answer(request.messages[0], self._settings.max_message_bytes)
        with anyio.CancelScope(shield=True):
            session = await self.sessions.begin(request, response, answer)
        if session is None or not self._recorder.enabled:
            relay.reader = None
        if session is not None:
            self._recorder.client_sent(session.id, request.messages, stream)
        return session

    def _hint(self, response: UpstreamResponse) -> None:
        """Say in the log what is likely wrong where a server refuses even to begin."""
        location = dict(response.headers).get(b"location")
        if location is not None:
            logger.warning(
                "%s redirects to %s, and redirects are not followed: give that URL as the upstream",
                self.upstream.shown,
                location.decode("latin-1"),
            )
        else:
            logger.warning(
                "%s answers %d to initialize: is it the server's MCP path?",
                self.upstream.shown,
                response.status,
            )

    def _respond(
        self,
        request: ClientRequest,
        session: Session | None,
        response: UpstreamResponse,
        relay: _Relay,
        stream: str | None,
    ) -> RelayResponse:
        headers = response_headers(response.headers, session, self._settings)
        if session is None or relay.reader is None or stream is None:
            body = relay.body()
        elif response.media is Media.SSE and not response.content_encoding and request.method == "POST":
            return self._live(request, session, response, relay, stream, headers)
        else:
            body = relay.recorded(self._recorder, session.id, stream)
        opened = object()
        self._streams.add(opened)

        async def close() -> None:
            self._streams.discard(opened)
            await response.aclose()

        return RelayResponse(response.status, headers, body, close)

    def _live(
        self,
        request: ClientRequest,
        session: Session,
        response: UpstreamResponse,
        relay: _Relay,
        stream: str,
        headers: Headers,
    ) -> RelayResponse:
        """Return the stream that answers the request, as one that outlives the client's connection."""
        settings = self._settings
        polled = (session.protocol_version or "") >= protocol.POLLED_SINCE
        live = LiveStream(
            session.id,
            stream,
            EventTap(stream, settings.max_message_bytes, _asked(request)),
            self._reopening(request, session),
            self._recorder,
            settings,
            polled=polled,
        )
        # An event without data would be a broken message to clients of the revisions before.
        prime = b"retry: %d\nid: %b\ndata:\n\n" % (settings.reconnect_after, minted(stream, 0).encode())
        return StreamResponse(
            [pair for pair in headers if pair[0] != b"content-length"],
            live,
            response,
            relay.body(),
            self._streams,
            prime if polled else b"",
        )


class _Relay:
    """One upstream body on its way: what was held back of it, the rest, and who reads along."""

    def __init__(self, response: UpstreamResponse, reader: Reader | None) -> None:
        self.reader = reader
        # A JSON message is known at the body's end only: its last chunk waits where it must be durable first.
        self._keeps_last = response.media is Media.JSON
        self._chunks = aiter(response)
        self._held: list[bytes] = []
        self._arrived: list[Arrival] = []
        self._ended = False

    async def hold_until_answer(self, asked: MessageEnvelope, limit: int) -> MessageEnvelope | None:
        """Read on until the answer to the request has come; `None` where the body ends or `limit` bytes pass
        without it. What was read is held back and not lost."""
        held = 0
        while self.reader is not None and held <= limit and len(self._arrived) <= _MOST_HELD:
            chunk = await anext(self._chunks, None)
            self._ended = chunk is None
            arrivals = self.reader.end() if chunk is None else self.reader.feed(chunk)
            self._arrived += arrivals
            if chunk is not None:
                self._held.append(chunk)
                held += len(chunk)
            if answer := _answer_among(arrivals, asked):
                return answer
            if self._ended:
                break
        return None

    async def body(self) -> AsyncIterator[bytes]:
        """Iterate over all chunks."""
        for chunk in self._held:
            yield chunk
        self._held.clear()
        if not self._ended:
            async for chunk in self._chunks:
                yield chunk

    async def recorded(self, recorder: Recorder, session_id: str, stream: str) -> AsyncIterator[bytes]:
        """Iterate over all chunks; what arrives in them is recorded before they go on."""
        reader = self.reader
        name = None if self._keeps_last else stream
        await recorder.pass_on(session_id, self._arrived, name)
        for chunk in self._held:
            yield chunk
        self._held.clear()
        self._arrived.clear()
        if self._ended:
            return
        last = b""
        keeps_last = self._keeps_last and recorder.holds(session_id)
        async for chunk in self._chunks:
            if reader is not None:
                await recorder.pass_on(session_id, reader.feed(chunk), name)
            yield last if keeps_last else chunk
            last = chunk
        if reader is not None:
            await recorder.pass_on(session_id, reader.end(), name)
        if keeps_last:
            yield last


def prepare_request(request: ClientRequest, session: Session | None, upstream: Upstream) -> OutboundRequest:
    """Return what goes upstream: what came, with the upstream's address and session id for ours."""
    headers: Headers = [(b"host", upstream.host)]
    for name, value in end_to_end(request.headers, _REPLACED):
        if name == protocol.SESSION_ID:
            # A request without a session of ours must not reach one of the upstream's by naming its id.
            if session is not None and session.upstream_session_id is not None:
                headers.append((name, session.upstream_session_id.encode("latin-1")))
        elif name == b"origin" and request.is_own_origin:
            # Same-origin to us is same-origin to the upstream, whose own check it must pass.
            headers.append((name, upstream.origin))
        else:
            headers.append((name, value))
    if request.method == "POST" or request.body:
        headers.append((b"content-length", b"%d" % len(request.body)))
    return OutboundRequest(request.method, headers, request.body, request.query)


def response_headers(came: Headers, session: Session | None, settings: Settings) -> Headers:
    """Return what the client gets: what came, with our session id for the upstream's."""
    headers = end_to_end(came)
    if settings.session_ids == "upstream":
        return headers
    headers = [pair for pair in headers if pair[0] != protocol.SESSION_ID]
    if session is not None:
        headers.append((protocol.SESSION_ID, session.id.encode("latin-1")))
    return headers


def _asked(request: ClientRequest) -> list[JsonRpcId]:
    return [message.id for message in request.messages if message.kind == "request"]


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> None:
    pass


def _answer_among(arrivals: Sequence[Arrival], asked: MessageEnvelope) -> MessageEnvelope | None:
    for arrival in arrivals:
        for message in arrival.messages:
            if message.kind in ("response", "error") and message.id == asked.id:
                return message
    return None
