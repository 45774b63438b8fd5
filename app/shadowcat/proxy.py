"""The path of a request: from the client's message to the one upstream stream and back."""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import anyio
from starlette.responses import Response

from shadowcat import protocol
from shadowcat.counters import Counters, Reason
from shadowcat.envelope import cancelled_id, read_envelopes
from shadowcat.eras.http_sse import HTTPSSE
from shadowcat.errors import StoreDown
from shadowcat.gets import Gets, is_stream
from shadowcat.headers import Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.live import LiveStream, Reopen
from shadowcat.live_responses import LiveResponse, StreamResponse
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.readers import Reader, reader_for
from shadowcat.recorder import Recorder
from shadowcat.recovery import Recovery
from shadowcat.relay import Relay
from shadowcat.responses import RelayResponse, WholeResponse
from shadowcat.restore import REFUSALS, Restorer
from shadowcat.sessions import SessionManager, is_initialize
from shadowcat.settings import Settings
from shadowcat.sse import CONTENT_TYPE
from shadowcat.standing import remember, sets_standing_state
from shadowcat.stream_names import answer_name, minted
from shadowcat.streams import LiveStreams
from shadowcat.tap import EventTap
from shadowcat.upstream import Media, Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch
from shadowcat_stores import GET_STREAM, JsonRpcId, Session, StoreError

logger = logging.getLogger("shadowcat")

_STREAM_HEADERS: Final = (
    (b"content-type", CONTENT_TYPE),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_LEFT_OUT: Final = frozenset({b"content-length", protocol.SESSION_ID, *dict(_STREAM_HEADERS)})


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
        self.restorer = Restorer(upstream, sessions, streams.owners, recorder, settings, counters)
        self.restorer.tell = self._tell
        self.http_sse = HTTPSSE(upstream, sessions, recorder, streams, settings, counters)

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> Response:
        """Send the client's request upstream, once, and return the response that relays the answer.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        self._counters.client_requests += 1
        if request.method == "POST":
            request.messages = read_envelopes(request.body)
        session = await self.sessions.resolve(request)
        if request.method == "GET" and (session is None or self._recorder.enabled):
            return await (self._get_alone(request) if session is None else self._get(request, session))
        stream = None
        if session is not None and self._recorder.enabled:
            # In revisions with sessions a client that is lost has cancelled nothing.
            watch.patience = self._settings.adopt_seconds if request.method == "POST" else 0.0
            asked = _asked(request)
            stream = answer_name(asked)
            self._recorder.client_sent(session.id, request.messages, stream if asked else None)
            await self._recorder.settle()
        response = await self.upstream.open(prepare_request(request, session, self.upstream))
        if session is not None and response.status in REFUSALS:
            session, response = await self._unless_forgotten(session, request, response)
        try:
            relay = Relay(response, self._reader(session, request, response))
            if session is not None:
                if response.media is Media.OTHER or self.sessions.has_news(session, request, response):
                    # The upstream has processed it: that its client has left by now must not undo our part.
                    with anyio.CancelScope(shield=True):
                        await self._settle(session, request, response)
                if sets_standing_state(request):
                    limit = self._settings.max_message_bytes
                    await remember(self.sessions, session, request, response, limit)
            elif is_initialize(request) and not protocol.is_stateless(request.protocol_version):
                stream = answer_name(_asked(request))
                session = await self._begin(request, response, relay, stream)
            return await self._respond(request, session, response, relay, stream)
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
            self._streams.drop(session.id)
        for message in request.messages:
            if message.method == "notifications/cancelled":
                self._streams.cancel(session.id, cancelled_id(message.raw))

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

    async def _get_alone(self, request: ClientRequest) -> Response:
        """Return what the upstream answers to a GET without a session: it may open a stream of HTTP+SSE."""
        outbound = prepare_request(request, None, self.upstream)
        # A stream that is compressed could not be told to be one.
        outbound.headers = [pair for pair in outbound.headers if pair[0] != b"accept-encoding"]
        response = await self.upstream.open(outbound)
        if is_stream(response):
            return self.http_sse.relay(request, response)
        return await self._respond(request, None, response, Relay(response, None), None)

    async def _get(self, request: ClientRequest, session: Session) -> Response:
        """Return the session's GET stream, or the stream that the client comes back for."""
        if not self.sessions.has_accepted(session, request):
            # Nothing is shown to a credential that the upstream has not seen.
            recovery = Recovery(self.upstream, request, self._settings.max_message_bytes)
            vouched, _ = await recovery.ask("ping", b"{}", session.upstream_session_id)
            if vouched.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return await self._respond(request, session, vouched, Relay(vouched, None), None)
            await self.sessions.settle(session, request, vouched)
        reopen = self._reopening(request, session)

        def head(came: Headers) -> Headers:
            headers = [pair for pair in end_to_end(came) if pair[0] not in _LEFT_OUT]
            return [*headers, *_STREAM_HEADERS, (protocol.SESSION_ID, session.id.encode("latin-1"))]

        try:
            if request.last_event_id:
                found = await self._gets.resume(session, request.last_event_id, head, reopen)
            else:
                found = await self._gets.open(session, head, reopen)
        except StoreError as exc:
            raise StoreDown(f"The session store does not answer: {exc}") from exc
        if isinstance(found, LiveResponse):
            return found
        if isinstance(found, UpstreamResponse):
            if request.last_event_id and found.status in REFUSALS:
                session, found = await self._unless_forgotten(session, request, found)
            return await self._respond(request, session, found, Relay(found, None), None)
        headers = response_headers(found.headers, session, self._settings)
        return WholeResponse(found.status, headers, found.body)

    def _reopening(self, request: ClientRequest, session: Session) -> Reopen:
        """Return what opens a stream of the session upstream with the credentials of this request."""
        upstream_session = session.upstream_session_id
        void: str | None = None

        async def reopen(stream: str, after: str | None, reason: Reason = "recover") -> UpstreamResponse:
            nonlocal upstream_session, void
            # Not before: hardly a stream is ever opened again, and each would pay for it.
            recovery = Recovery(self.upstream, request, self._settings.max_message_bytes)
            if stream != GET_STREAM:
                return await recovery.open_stream(upstream_session, after, reason)
            current = await self.sessions.current(session)
            if current.upstream_session_id != upstream_session:
                # It was begun anew meanwhile, and the ids of before mean nothing there.
                upstream_session, void = current.upstream_session_id, after
            known = None if after == void else after
            response = await recovery.open_stream(upstream_session, known, reason)
            if response.status not in REFUSALS:
                return response
            restored = await self.restorer.restored(current, request, response)
            if restored is None:
                return response
            upstream_session, void = restored.upstream_session_id, after
            return await recovery.open_stream(upstream_session, None, "recover")

        return reopen

    def _tell(self, session: Session, notifications: list[bytes]) -> None:
        """Send these on the session's GET stream, as soon as that is open again, too."""
        self._gets.forget(session.id)
        live = self._streams.find(session.id, GET_STREAM)
        if live is not None:
            live.to_say += notifications

    def _reader(
        self, session: Session | None, request: ClientRequest, response: UpstreamResponse
    ) -> Reader | None:
        wanted = session is not None and self._recorder.enabled
        if wanted or is_initialize(request):
            return reader_for(response, self._settings.max_message_bytes)
        return None

    async def _begin(
        self, request: ClientRequest, response: UpstreamResponse, relay: Relay, stream: str
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
                "%s answers %d to initialize: is it the server's MCP path? (HTTP+SSE begins with a GET.)",
                self.upstream.shown,
                response.status,
            )

    async def _respond(
        self,
        request: ClientRequest,
        session: Session | None,
        response: UpstreamResponse,
        relay: Relay,
        stream: str | None,
    ) -> Response:
        headers = response_headers(response.headers, session, self._settings)
        if response.media is not Media.SSE and (whole := relay.take_whole()) is not None:
            if session is not None and relay.reader is not None:
                arrived = relay.reader.feed(whole) + relay.reader.end()
                await self._recorder.pass_on(session.id, arrived, None)
            return WholeResponse(response.status, headers, whole)
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

        is_recorded = session is not None and relay.reader is not None and response.media is Media.JSON
        return RelayResponse(response.status, headers, body, close, is_recorded_whole=is_recorded)

    def _live(
        self,
        request: ClientRequest,
        session: Session,
        response: UpstreamResponse,
        relay: Relay,
        stream: str,
        headers: Headers,
    ) -> RelayResponse:
        """Return the stream that answers the request, as one that outlives the client's connection."""
        settings = self._settings
        polled = protocol.is_polled(session.protocol_version)
        asked = _asked(request)
        # What opens it again needs who asked only: the message would lie in memory for as long as it lasts.
        request.body, request.messages = b"", []
        live = LiveStream(
            session.id,
            stream,
            EventTap(stream, settings.max_message_bytes, asked),
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


def _asked(request: ClientRequest) -> list[JsonRpcId]:
    return [message.id for message in request.messages if message.kind == "request"]
