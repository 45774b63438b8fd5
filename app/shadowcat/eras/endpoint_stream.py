"""The stream of a session over HTTP+SSE: passes as it comes, but for the address in its `endpoint` event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import anyio
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from shadowcat.errors import AmbiguousDelivery, ShadowcatError, Stopping, StoreDown, UpstreamError
from shadowcat.headers import Headers
from shadowcat.inbound import ClientRequest
from shadowcat.listener import Listener
from shadowcat.live_responses import LiveResponse
from shadowcat.readers import Arrival, messages_of, short
from shadowcat.recorder import Recorder
from shadowcat.responses import error_response
from shadowcat.sessions import SessionManager, read_result, with_answer
from shadowcat.settings import Settings
from shadowcat.sse import COMMENT, SSEBlock, SSEFramer, with_data, write_event
from shadowcat.streams import UNDER_WAY, LiveStreams
from shadowcat.upstream import Upstream, UpstreamResponse
from shadowcat_stores import GET_STREAM, JsonRpcId, MessageEnvelope, Session, StoreError

logger = logging.getLogger("shadowcat.eras")

SESSION_PARAMETER: Final = "session_id"
_HEAD_WAITS: Final = 1.0
"""Seconds that the response's head waits for the first event: what goes wrong till then has a status."""
_MOST_HELD: Final = 64 * 1024
"""Bytes before the first event that wait with it."""
_LONGEST_ENDPOINT: Final = 4096
_MOST_EXPECTED: Final = 1000
"""Requests whose answers are waited for by name."""
_LAST_WORDS: Final = 1.0
"""Seconds that a slow client has to take how the stream ended."""
_LOST: Final = (
    "The session's stream ended before the answer, and this revision cannot resume it. The request may have "
    "been processed: check before you send it again."
)


class EndpointResponse(LiveResponse):
    """Sends the client one stream that a GET without a session has opened at the server.

    With the first `endpoint` event it becomes a session's, and that ends with it. One without such an event,
    of a server that keeps no sessions, passes all the same. A slow client stops the server by TCP.
    """

    def __init__(
        self,
        headers: Headers,
        request: ClientRequest,
        response: UpstreamResponse,
        upstream: Upstream,
        sessions: SessionManager,
        recorder: Recorder,
        streams: LiveStreams,
        settings: Settings,
    ) -> None:
        super().__init__(headers)
        self._request = request
        self._response = response
        self._upstream = upstream
        self._sessions = sessions
        self._recorder = recorder
        self._streams = streams
        self._session: Session | None = None
        self._endpoint = b""
        """What the client has been given for the server's."""
        self._framer = SSEFramer(settings.max_message_bytes)
        self._position = 0
        self._expected: set[JsonRpcId] = set()
        """Requests that came in here and are not answered."""
        self._held = b""
        self._has_begun = False
        self._begin_by = 0.0
        self._under_way = settings.record_window + UNDER_WAY
        self._answered: set[JsonRpcId] = set()
        """Requests that were answered since it is to end."""
        self._is_cut = False
        self._is_stopping = False
        self._scope = anyio.CancelScope()

    # -- what others tell it --------------------------------------------------------------------------------

    def expect(self, asked: Iterable[JsonRpcId]) -> None:
        """Know that these requests are sent to the server."""
        for each in asked:
            if len(self._expected) < _MOST_EXPECTED and len(str(each)) < _MOST_EXPECTED:
                self._expected.add(each)

    def forget(self, asked: Iterable[JsonRpcId]) -> None:
        """Expect no answer to these requests any more."""
        self._expected.difference_update(asked)
        if self._is_stopping and not self._expected:
            self._scope.cancel()

    def keep_alive(self, before: float) -> None:
        """Send a comment where nothing was sent since then (`time.monotonic`)."""
        may_write = self._has_begun and not self._framer.is_in_parts
        if may_write and self._listener is not None and self._listener.wrote_at <= before:
            self._listener.send_beside(COMMENT)

    def client_left(self) -> None:
        """End it, and the session: its client cannot come back to it."""
        self._has_left = True
        if self._listener is not None:
            self._listener.leave()
        self._scope.cancel()

    def cut(self) -> None:
        """End it as soon as no answer is missing; asked again, now."""
        if self._is_cut:
            self._scope.cancel()
        elif self._session is not None and self._streams.owners.id:
            self._streams.do(self._stop_for_all(self._session.id))
        else:
            self._stop()
        self._is_cut = True

    def _stop(self) -> None:
        self._is_stopping = True
        self.forget(())

    async def _stop_for_all(self, session_id: str) -> None:
        """Wait for the answers as well to what came in at other replicas, once it is on the tape."""
        await asyncio.sleep(self._under_way)
        await self._recorder.flush()
        with suppress(StoreError):
            self.expect(await self._streams.missing(session_id) - self._answered)
        self._stop()

    def drop(self) -> None:
        """End it: its session has ended elsewhere."""
        self._expected.clear()
        self._scope.cancel()

    # -- its life -------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; return when it has ended, at either side."""
        listener = self._listener = Listener(send)
        if self._has_left:
            listener.leave()
        self._streams.add(self)
        self._begin_by = anyio.current_time() + _HEAD_WAITS
        try:
            with self._scope:
                await self._relay(listener, messages_path(scope))
            if self._scope.cancelled_caught and not self._has_begun:
                raise Stopping
            await self._conclude(listener)
            await listener.end()
        except ShadowcatError as error:
            if self._has_begun:
                await self._conclude(listener)
                raise
            if not listener.is_gone:
                logger.log(error.level, "GET %s: %s [%s]", error.status, error, self._upstream.shown)
                await error_response(error)(scope, receive, send)
        finally:
            await self._response.aclose()
            await self._end_session()
            self._streams.discard(self)

    async def _relay(self, listener: Listener, path: str) -> None:
        chunks = aiter(self._response)
        while (chunk := await self._next(chunks, listener)) is not None:
            await self._pass(self._framer.feed(chunk), listener, path)
            if listener.is_gone:
                return
        self._held += self._framer.pending
        await self._send_held(listener)

    async def _next(self, chunks: AsyncIterator[bytes], listener: Listener) -> bytes | None:
        """Return the next chunk. Where the first event is slow to come, send the head meanwhile."""
        if self._has_begun:
            return await anext(chunks, None)
        reading = asyncio.ensure_future(anext(chunks, None))
        try:
            await asyncio.wait([reading], timeout=max(0.0, self._begin_by - anyio.current_time()))
            if not reading.done():
                await self._send_held(listener)
            return await reading
        finally:
            if not reading.done():
                reading.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.gather(reading, return_exceptions=True)

    async def _send_held(self, listener: Listener) -> None:
        if not self._has_begun:
            self._has_begun = True
            await listener.begin(self._head)
        held, self._held = self._held, b""
        if held:
            await listener.write(held)

    async def _pass(self, blocks: list[SSEBlock], listener: Listener, path: str) -> None:
        arrivals: list[Arrival] = []
        is_event = False
        for block in blocks:
            raw = block.raw
            if block.event == "endpoint" and block.data is not None:
                is_event = True
                raw = with_data(raw, await self._own_endpoint(block.data, path))
            elif block.data is not None or block.unread:
                is_event = True
                self._position += 1
                arrivals.append(
                    Arrival(messages_of(block), self._position, short(block.event), short(block.id))
                )
            self._held += raw
        if arrivals and self._session is not None:
            await self._take(self._session, arrivals)
        if self._has_begun or is_event or len(self._held) > _MOST_HELD:
            await self._send_held(listener)
        if self._is_stopping and not self._expected:
            self._scope.cancel()

    async def _own_endpoint(self, data: bytes, path: str) -> bytes:
        """Return the address that the client gets for the server's."""
        target = self._upstream.resolve(data.decode("utf-8", "replace").strip(" \t"))
        if len(target) > _LONGEST_ENDPOINT:
            raise UpstreamError(f"The MCP server's endpoint is longer than {_LONGEST_ENDPOINT} bytes.")
        session = self._session
        if session is None:
            with anyio.CancelScope(shield=True):  # so that it is not left behind
                session = await self._sessions.begin_at_endpoint(self._request, target)
                self._session = session
                self._streams.endpoints[session.id] = self
                self._endpoint = f"{path}?{SESSION_PARAMETER}={session.id}".encode()
        elif target != session.message_endpoint:
            moved = await self._sessions.update(session, lambda now: replace(now, message_endpoint=target))
            self._session = moved or session
        return self._endpoint

    async def _take(self, session: Session, arrivals: list[Arrival]) -> None:
        """Keep what the server says."""
        for arrival in arrivals:
            for message in arrival.messages:
                if message.kind in ("response", "error"):
                    self._expected.discard(message.id)
                    if self._is_cut:
                        self._answered.add(message.id)
                    if session.protocol_version is None and message.kind == "response":
                        session = self._session = await self._agree(session, message)
        await self._recorder.pass_on(session.id, arrivals, GET_STREAM)

    async def _agree(self, session: Session, answer: MessageEnvelope) -> Session:
        """Keep what the answer to `initialize` says."""
        if read_result(answer).protocol_version is None:
            return session
        try:
            return await self._sessions.update(session, lambda now: with_answer(now, answer)) or session
        except StoreDown as exc:
            logger.warning("session %s could not be updated: %s", session.id, exc)
            return with_answer(session, answer)

    async def _conclude(self, listener: Listener) -> None:
        """Tell the client which requests are not going to be answered."""
        session = self._session
        if session is None or listener.is_gone:
            return
        with anyio.move_on_after(_LAST_WORDS):
            missing = set(self._expected)
            if self._recorder.enabled:  # others came in at other replicas
                await self._recorder.flush()
                with suppress(StoreError):
                    missing |= await self._streams.missing(session.id)
            for request_id in missing:
                await listener.write(write_event(AmbiguousDelivery(_LOST).message(request_id)))

    async def _end_session(self) -> None:
        if self._session is not None:
            del self._streams.endpoints[self._session.id]
            with anyio.CancelScope(shield=True):
                await self._sessions.end(self._session.id)


def messages_path(scope: Scope) -> str:
    """Return the path for messages beside that of the request, as the client has to write it."""
    path: str = scope["path"]
    prefix = scope.get("root_path", "").rstrip("/")
    if not path.startswith(prefix + "/"):
        path = prefix + path
    beside = path.rpartition("/")[0]
    # A second slash at the beginning would make what follows a host.
    return quote("/" + f"{beside}/messages".lstrip("/"))
