"""The path of a request: from the client's message to the one upstream stream and back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from shadowcat import protocol
from shadowcat.counters import Counters, Reason
from shadowcat.envelope import cancelled_id, read_envelopes
from shadowcat.eras.http_sse import HTTPSSE
from shadowcat.eras.sessionless import Sessionless
from shadowcat.errors import StoreDown
from shadowcat.gets import Gets, is_stream
from shadowcat.handshake import begins_session
from shadowcat.headers import Headers, end_to_end
from shadowcat.inbound import ClientRequest
from shadowcat.live import LiveStream, Reopen
from shadowcat.live_responses import LiveResponse, StreamResponse
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.readers import read_whole, reader_for
from shadowcat.recorder import Recorder
from shadowcat.recovery import Recovery
from shadowcat.relay import Relay
from shadowcat.responses import RelayResponse, WholeResponse
from shadowcat.restore import REFUSALS, Restorer
from shadowcat.sessions import SessionManager
from shadowcat.settings import Settings
from shadowcat.sse import CONTENT_TYPE
from shadowcat.standing import remember, sets_standing_state
from shadowcat.stream_names import answer_name
from shadowcat.streams import LiveStreams
from shadowcat.tap import EventTap
from shadowcat.upstream import Media, Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch, spared
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
        self.sessionless = Sessionless(upstream, recorder, streams, settings)

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> Response:
        """Send the client's request upstream, once, and return the response that relays the answer.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        self._counters.client_requests += 1
        if request.method == "POST":
            request.messages = read_envelopes(request.body)
        session = await self.sessions.resolve(request)
        if session is None:
            return await self._without_session(request, watch)
        if request.method == "GET" and self._recorder.enabled:
            return await self._get(request, session)
        stream = None
        if self._recorder.enabled:
            # In revisions with sessions a client that is lost has cancelled nothing.
            watch.patience = self._settings.adopt_seconds if request.method == "POST" else 0.0
            asked = _asked(request)
            stream = answer_name(asked)
            self._recorder.client_sent(session.id, request.messages, stream if asked else None)
            if self._recorder.durable_first:
                await self._recorder.settle()
        response = await self.upstream.open(prepare_request(request, session, self.upstream))
        if response.status in REFUSALS:
            session, response = await self._unless_forgotten(session, request, response)
        try:
            if response.media is Media.OTHER or self.sessions.has_news(session, request, response):
                # The upstream has processed it: that its client has left by now must not undo our part.
                with spared():
                    await self._settle(session, request, response)
            if sets_standing_state(request):
                limit = self._settings.max_message_bytes
                await remember(self.sessions, session, request, response, limit)
            return await self._respond(request, session, response, stream)
        except BaseException:
            await response.aclose()
            raise

    async def _without_session(self, request: ClientRequest, watch: ClientWatch) -> Response:
        """Return what the upstream answers to a request that names no session, and may begin one."""
        if request.method == "GET":
            return await self._get_alone(request)
        if not begins_session(request):
            return await self.sessionless.forward(request, watch)
        response = await self.upstream.open(prepare_request(request, None, self.upstream))
        try:
            stream = answer_name(_asked(request))
            relay = Relay(response, reader_for(response, self._settings.max_message_bytes))
            session = await self._begin(request, response, relay, stream)
            name = stream if self._recorder.enabled else None
            return await self._respond(request, session, response, name, relay)
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
        return await self._respond(request, None, response)

    async def _get(self, request: ClientRequest, session: Session) -> Response:
        """Return the session's GET stream, or the stream that the client comes back for."""
        if not self.sessions.has_accepted(session, request):
            # Nothing is shown to a credential that the upstream has not seen.
            recovery = Recovery(self.upstream, request, self._settings.max_message_bytes)
            vouched, _ = await recovery.ask("ping", b"{}", session.upstream_session_id)
            if vouched.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return await self._respond(request, session, vouched)
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
            return await self._respond(request, session, found)
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
            live.to_say = [*live.to_say, *notifications]

    async def _begin(
        self, request: ClientRequest, response: UpstreamResponse, relay: Relay, stream: str
    ) -> Session | None:
        """Store the session before the first byte of its `initialize` answer leaves.

        The answer is read up to its message for that: it says whether there is a session, and its revision.
        """
        if response.status >= 300:
            self._hint(response)
        answer = await relay.hold_until_answer(request.messages[0], self._settings.max_message_bytes)
        with spared():
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
        stream: str | None = None,
        relay: Relay | None = None,
    ) -> Response:
        """Return the response that relays this one.

        Args:
            request: the client's.
            session: what it belongs to.
            response: what the upstream answers.
            stream: the name that the answer is recorded under; `None` where it is not recorded.
            relay: what has read of the answer already.
        """
        headers = response_headers(response.headers, session, self._settings)
        limit = self._settings.max_message_bytes
        is_json = response.media is Media.JSON
        whole = response.take_whole() if relay is None else None
        if session is not None and stream is not None:
            if request.method == "POST" and is_stream(response):
                return await self._live(request, session, response, stream, headers, relay, whole)
            if whole is not None:
                arrived = read_whole(response, whole, limit)
                await self._recorder.pass_on(session.id, arrived, None if is_json else stream)
        if whole is not None:
            return WholeResponse(response.status, headers, whole)
        relay = relay or Relay(response, None if stream is None else reader_for(response, limit))
        is_recorded = session is not None and stream is not None and relay.reader is not None
        if session is not None and is_recorded:
            body = relay.recorded(self._recorder, session.id, None if is_json else stream)
        else:
            body = relay.body()
        close = self._streams.counted(response)
        return RelayResponse(response.status, headers, body, close, is_recorded_whole=is_recorded and is_json)

    async def _live(
        self,
        request: ClientRequest,
        session: Session,
        response: UpstreamResponse,
        stream: str,
        headers: Headers,
        relay: Relay | None,
        whole: bytes | None,
    ) -> Response:
        """Return the stream that answers the request, as one that outlives the client's connection; or whole,
        where it has come whole: it need not outlive anything then."""
        settings = self._settings
        asked = _asked(request)
        headers = [pair for pair in headers if pair[0] != b"content-length"]
        tap = EventTap(stream, settings.max_message_bytes, asked)
        if whole is not None:
            taken = tap.feed(whole)
            if not tap.unanswered:
                await self._recorder.pass_on(session.id, taken.arrivals, stream)
                return WholeResponse(response.status, headers, taken.data)
            tap = EventTap(stream, settings.max_message_bytes, asked)
            body = _once(whole)
        else:
            body = aiter(response) if relay is None else relay.body()
        polled = protocol.is_polled(session.protocol_version)
        # What opens it again needs who asked only: the message would lie in memory for as long as it lasts.
        request.body, request.messages = b"", []
        live = LiveStream(
            session.id,
            stream,
            tap,
            self._reopening(request, session),
            self._recorder,
            settings,
            polled=polled,
        )
        return StreamResponse(headers, live, response, body, self._streams, polled=polled)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _asked(request: ClientRequest) -> list[JsonRpcId]:
    return [message.id for message in request.messages if message.kind == "request"]
