"""The path of a request: from the client's message to the one upstream stream and back."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

import anyio

from shadowcat import protocol
from shadowcat.counters import Counters
from shadowcat.envelope import read_envelopes
from shadowcat.headers import Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.readers import Arrival, Reader, reader_for
from shadowcat.recorder import Recorder
from shadowcat.responses import RelayResponse
from shadowcat.restore import REFUSALS, Restorer
from shadowcat.sessions import SessionManager, is_initialize
from shadowcat.settings import Settings
from shadowcat.standing import remember, sets_standing_state
from shadowcat.streams import LiveStream, LiveStreams
from shadowcat.upstream import Media, OutboundRequest, Upstream, UpstreamResponse
from shadowcat_stores import GET_STREAM, MessageEnvelope, Session

logger = logging.getLogger("shadowcat")

_MOST_HELD: Final = 100
"""Events before the answer to `initialize` that are held back with it."""

_AWAITED: Final = frozenset({"request", "response", "error"})
"""What a client acts on. It goes on to other replicas only after the store knows it."""

# Rewritten for the upstream's side: its own address, its own session id, the length of what we send.
_REPLACED: Final = frozenset({b"host", b"content-length", b"expect"})


class Proxy:
    """Forwards the requests of one upstream's clients: each becomes one upstream request, or none."""

    def __init__(
        self,
        upstream: Upstream,
        sessions: SessionManager,
        recorder: Recorder,
        streams: LiveStreams,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self.upstream = upstream
        self.sessions = sessions
        self._recorder = recorder
        self._streams = streams
        self._settings = settings
        self._counters = counters
        self.restorer = Restorer(upstream, sessions, recorder, settings, counters)

    async def forward(self, request: ClientRequest) -> RelayResponse:
        """Send the client's request upstream, once, and return the response that relays the answer.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        self._counters.client_requests += 1
        if request.method == "POST":
            request.messages = read_envelopes(request.body)
        session = await self.sessions.resolve(request)
        if session is not None:
            self._recorder.client_sent(session.id, request.messages)
            await self._recorder.settle()
        response = await self.upstream.open(prepare_request(request, session, self.upstream))
        if session is not None and response.status in REFUSALS:
            session, response = await self._unless_forgotten(session, request, response)
        try:
            relay = _Relay(response, self._reader(session, request, response))
            if session is not None:
                # The upstream has processed it: that its client has left by now must not undo our part.
                with anyio.CancelScope(shield=True):
                    await self.sessions.settle(session, request, response)
                if sets_standing_state(request):
                    limit = self._settings.max_message_bytes
                    await remember(self.sessions, session, request, response, limit)
                if request.messages and response.media is Media.OTHER:
                    # Nothing but the head tells the client that it may go on: 202 has no body.
                    await self._recorder.settle(ends_turn_of=session.id)
            elif is_initialize(request) and not protocol.is_stateless(request.protocol_version):
                session = await self._begin(request, response, relay)
            return self._respond(request, session, response, relay)
        except BaseException:
            await response.aclose()
            raise

    async def _unless_forgotten(
        self, session: Session, request: ClientRequest, response: UpstreamResponse
    ) -> tuple[Session, UpstreamResponse]:
        """Return the session as it goes on, and what answers the request in it."""
        restored = await self.restorer.restored(session, request, response)
        if restored is None:
            return session, response
        if all(message.kind in ("response", "error") for message in request.messages) and request.messages:
            # Who asked is gone with the former session; in the new one its id is another question's.
            return restored, UpstreamResponse.accepted()
        again = prepare_request(request, restored, self.upstream)
        return restored, await self.upstream.open(replace(again, reason="recover"))

    def _reader(
        self, session: Session | None, request: ClientRequest, response: UpstreamResponse
    ) -> Reader | None:
        wanted = session is not None and self._recorder.enabled
        if wanted or is_initialize(request):
            return reader_for(response, self._settings.max_message_bytes)
        return None

    async def _begin(
        self, request: ClientRequest, response: UpstreamResponse, relay: _Relay
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
            self._recorder.client_sent(session.id, request.messages)
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
        self, request: ClientRequest, session: Session | None, response: UpstreamResponse, relay: _Relay
    ) -> RelayResponse:
        live = LiveStream(None if session is None else session.id, request.method == "GET")
        body = (
            relay.body()
            if session is None
            else relay.recorded(self._recorder, session.id, _stream(request, response))
        )
        if live.standalone and response.media is Media.SSE:
            body = live.until_ended(body)
        self._streams.add(live)

        async def close() -> None:
            self._streams.discard(live)
            await response.aclose()

        return RelayResponse(
            response.status, response_headers(response, session, self._settings), body, close
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

    async def recorded(self, recorder: Recorder, session_id: str, stream: str | None) -> AsyncIterator[bytes]:
        """Iterate over all chunks; what arrives in them is recorded before they go on."""
        reader = self.reader
        await _record(recorder, session_id, self._arrived, stream)
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
                await _record(recorder, session_id, reader.feed(chunk), stream)
            yield last if keeps_last else chunk
            last = chunk
        if reader is not None:
            await _record(recorder, session_id, reader.end(), stream)
        if keeps_last:
            yield last


async def _record(
    recorder: Recorder, session_id: str, arrivals: Sequence[Arrival], stream: str | None
) -> None:
    """Record what arrived, and return when it may go on."""
    if arrivals:
        recorder.server_sent(session_id, arrivals, stream)
        awaited = any(message.kind in _AWAITED for each in arrivals for message in each.messages)
        await recorder.settle(ends_turn_of=session_id if awaited else None)


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


def response_headers(response: UpstreamResponse, session: Session | None, settings: Settings) -> Headers:
    """Return what the client gets: what came, with our session id for the upstream's."""
    headers = end_to_end(response.headers)
    if settings.session_ids == "upstream" and (session is None or session.upstream_session_id == session.id):
        return headers
    headers = [pair for pair in headers if pair[0] != protocol.SESSION_ID]
    if session is not None:
        headers.append((protocol.SESSION_ID, session.id.encode("latin-1")))
    return headers


def _stream(request: ClientRequest, response: UpstreamResponse) -> str | None:
    if response.media is not Media.SSE:
        return None
    return GET_STREAM if request.method == "GET" else secrets.token_urlsafe(6)


def _answer_among(arrivals: Sequence[Arrival], asked: MessageEnvelope) -> MessageEnvelope | None:
    for arrival in arrivals:
        for message in arrival.messages:
            if message.kind in ("response", "error") and message.id == asked.id:
                return message
    return None
