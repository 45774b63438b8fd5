"""HTTP+SSE, the transport of revision 2024-11-05, in front of servers that speak it.

The client opens one stream, whose first event names the address for its messages; each is POSTed there and
answered on the stream: https://modelcontextprotocol.io/specification/2024-11-05/basic/transports#http-with-sse.
Which servers speak it is told by that event. The client gets an address of the proxy's own in it; that of the
server is in the session's record, so messages may come in at any replica.

The session begins with that event and ends with the stream: in this revision nobody can come back to it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from urllib.parse import parse_qs

from shadowcat.counters import Counters
from shadowcat.envelope import cancelled_id, read_envelopes
from shadowcat.eras.endpoint_stream import SESSION_PARAMETER, EndpointResponse
from shadowcat.errors import SessionRequired, StoreDown
from shadowcat.inbound import ClientRequest, is_initialize
from shadowcat.outbound import prepare_request, response_headers
from shadowcat.recorder import Recorder
from shadowcat.responses import RelayResponse
from shadowcat.sessions import SessionManager, with_offer
from shadowcat.settings import Settings
from shadowcat.streams import LiveStreams
from shadowcat.upstream import Upstream, UpstreamResponse
from shadowcat.watch import ClientWatch, spared
from shadowcat_stores import GET_STREAM, JsonRpcId, Session

logger = logging.getLogger("shadowcat.eras")


class HTTPSSE:
    """What is asked of one upstream over HTTP+SSE."""

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
        self._sessions = sessions
        self._recorder = recorder
        self._streams = streams
        self._settings = settings
        self._counters = counters

    def relay(self, request: ClientRequest, response: UpstreamResponse) -> EndpointResponse:
        """Return the stream that a GET without a session has opened."""
        headers = response_headers(response.headers, None, self._settings)
        return EndpointResponse(
            [pair for pair in headers if pair[0] != b"content-length"],
            request,
            response,
            self.upstream,
            self._sessions,
            self._recorder,
            self._streams,
            self._settings,
        )

    async def forward(self, request: ClientRequest, watch: ClientWatch) -> RelayResponse:
        """Send a message of the client's to the address that the server has named, once.

        Raises:
            ShadowcatError: what the client is to be told instead.
        """
        self._counters.client_requests += 1
        if request.method != "POST":  # a preflight: it has neither credentials nor an effect
            return self._respond(await self._send(request, None))
        request.messages = read_envelopes(request.body)
        session = await self._sessions.resolve_at_endpoint(_session_id(request), request)
        # A client that leaves has cancelled nothing, and gets the answer on its stream.
        watch.patience = self._settings.adopt_seconds
        asked = [message.id for message in request.messages if message.kind == "request"]
        self._recorder.client_sent(session.id, request.messages, GET_STREAM if asked else None)
        await self._recorder.settle()
        stream = self._streams.endpoints.get(session.id)
        if stream is not None:
            stream.expect(asked)
        accepted = False
        try:
            response = await self._send(request, session)
            accepted = response.status < 300
        finally:
            if stream is not None and not accepted:
                stream.forget(asked)
            elif stream is not None:
                stream.forget(_cancelled(request))
        try:
            with spared():
                await self._settle(session, request, response)
        except BaseException:
            await response.aclose()
            raise
        return self._respond(response)

    async def _send(self, request: ClientRequest, session: Session | None) -> UpstreamResponse:
        upstream = self.upstream if session is None else self.upstream.beside(session.message_endpoint)
        # The query is the proxy's own. The server's is in its address.
        return await upstream.open(replace(prepare_request(request, session, upstream), query=b""))

    async def _settle(self, session: Session, request: ClientRequest, response: UpstreamResponse) -> None:
        """Keep what the server's answer says of the session."""
        await self._sessions.settle(session, request, response)
        if is_initialize(request) and response.status < 300:
            try:
                await self._sessions.update(session, lambda now: with_offer(now, request))
            except StoreDown as exc:
                logger.warning("session %s could not be updated: %s", session.id, exc)
        # The client may go on, at another replica.
        await self._recorder.settle(ends_turn_of=session.id)

    def _respond(self, response: UpstreamResponse) -> RelayResponse:
        headers = response_headers(response.headers, None, self._settings)
        return RelayResponse(response.status, headers, aiter(response), self._streams.counted(response))


def _session_id(request: ClientRequest) -> str:
    given = parse_qs(request.query.decode("latin-1")).get(SESSION_PARAMETER, ())
    if len(given) != 1:
        raise SessionRequired(
            f"{SESSION_PARAMETER} is missing: open the stream of events with GET, and post to the address in "
            "its first one."
        )
    return given[0]


def _cancelled(request: ClientRequest) -> list[JsonRpcId]:
    return [
        cancelled_id(message.raw)
        for message in request.messages
        if message.method == "notifications/cancelled"
    ]
