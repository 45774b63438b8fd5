"""Responses whose stream outlives them: the first one, and those of clients that come back for it."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import anyio
from starlette.types import Message, Receive, Scope, Send

from shadowcat.errors import AmbiguousDelivery, StoreDown
from shadowcat.headers import Headers
from shadowcat.listener import Listener
from shadowcat.live import LiveStream
from shadowcat.mail import LISTENING, Listen
from shadowcat.recorder import Recorder
from shadowcat.replay import Cursor
from shadowcat.responses import RelayResponse
from shadowcat.sse import write_event
from shadowcat.stream_names import minted
from shadowcat.streams import LiveStreams
from shadowcat.upstream import UpstreamResponse
from shadowcat_stores import GET_STREAM, SessionStore, StoreError

_SOON: Final = 0.05
"""Seconds after which a stream is no short one any more: its client gets an id to come back with, and other
replicas are told who reads it."""
_TELL_AGAIN: Final = 0.25
"""Seconds after which that replica is told once more that somebody listens here, at first: it may not have
begun to read when it was told."""
_LOOK_AGAIN: Final = 0.1
"""Seconds after which a stream that another replica reads is looked for again."""


class LiveResponse(RelayResponse, ABC):
    """A response to one listener of a stream."""

    def __init__(self, headers: Headers) -> None:
        self.is_recorded_whole = False
        self.status_code = 200
        self.raw_headers = headers
        self.background = None
        self._listener: Listener | None = None
        self._live: LiveStream | None = None
        self._has_left = False

    @property
    def _head(self) -> Message:
        return {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}

    def client_left(self) -> None:
        """Send nothing more. The stream goes on for a while."""
        self._has_left = True
        if self._listener is not None:
            if self._live is None:
                self._listener.leave()
            else:
                self._live.detach(self._listener)

    @abstractmethod
    def cut(self) -> None:
        """End as soon as can be: the server stops."""


class StreamResponse(LiveResponse):
    """Sends the stream that answers a request, and goes on reading it when its client has left.

    A slow client stops the upstream by TCP: nothing is read ahead.
    """

    def __init__(
        self,
        headers: Headers,
        live: LiveStream,
        response: UpstreamResponse,
        body: AsyncIterator[bytes],
        streams: LiveStreams,
        *,
        polled: bool,
    ) -> None:
        """Begin.

        Args:
            headers: of the response.
            live: the stream.
            response: the upstream's response.
            body: its chunks.
            streams: where the stream is found meanwhile.
            polled: whether a client that has to wait for the first event gets an id to come back with. An
                event without data would be a broken message to clients of the revisions before 2025-11-25.
        """
        super().__init__(headers)
        self._stream = live
        self._response = response
        self._body = body
        self._streams = streams
        self._polled = polled
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; return when the stream has ended."""
        live = self._live = self._stream
        listener = self._listener = Listener(send)
        self._streams.add(live)
        live.attach(listener)
        if self._has_left:
            live.detach(listener)
        if self._polled or self._streams.owners.id:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._settle_in)
        try:
            await listener.begin(self._head)
            # Nobody needs them any more, and the stream may last.
            self.raw_headers = []
            self._response.headers.clear()
            await live.run(self._response, self._body)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._streams.discard(live)
            await self._response.aclose()

    def _settle_in(self) -> None:
        self._timer = None
        live = self._stream
        self._streams.claim(live)
        if self._polled and live.tap.position == 0 and self._listener is not None:
            prime = b"retry: %d\nid: %b\ndata:\n\n"
            event_id = minted(live.name, 0).encode()
            self._listener.send_beside(prime % (self._streams.settings.reconnect_after, event_id))

    def client_left(self) -> None:
        """Send nothing more, and let other replicas know who reads the stream: the client may come there."""
        super().client_left()
        self._streams.claim(self._stream)

    def cut(self) -> None:
        """End it now: what is missing is said."""
        self._stream.end()


class ResumedResponse(LiveResponse):
    """Sends what the tape has after the cursor, then what the stream brings, to the last answer."""

    def __init__(
        self,
        headers: Headers,
        session_id: str,
        cursor: Cursor | None,
        store: SessionStore,
        recorder: Recorder,
        streams: LiveStreams,
        go_on: Callable[[Cursor], Awaitable[bool]],
    ) -> None:
        """Begin.

        Args:
            headers: of the response.
            session_id: whose stream it is.
            cursor: the client's place in it; `None` where it is to get what comes from now on.
            store: where the tape is.
            recorder: what may still be on its way to the tape.
            streams: those that are read by this process.
            go_on: starts to read the stream here, where nobody reads it; returns whether there is more of it.
        """
        super().__init__(headers)
        self._session_id = session_id
        self._cursor = cursor
        self._store = store
        self._recorder = recorder
        self._streams = streams
        self._go_on = go_on
        self._name = secrets.token_urlsafe(9)
        self._told = ""
        """Which replica was told that somebody listens here."""
        self._tell_after = _TELL_AGAIN
        self._tell_at = 0.0
        """When it is to be told again (`time.monotonic`)."""
        self._sent_events = 0
        self._sent_bytes = 0
        """Since it was told."""
        self._has_waited = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; return when the client has left, or has all there is."""
        if self._has_left:
            return
        listener = self._listener = Listener(send)
        self._streams.add(self)
        self._streams.followers[self._name] = listener
        try:
            await listener.begin(self._head)
            try:
                await self._catch_up(listener)
            except StoreError as exc:
                # The client comes back with the id of the last event that it has.
                raise StoreDown(f"The session store does not answer: {exc}") from exc
            await listener.over.wait()
            await listener.settle()
        finally:
            self._streams.followers.pop(self._name, None)
            self._streams.discard(self)

    def cut(self) -> None:
        """End it now: the client comes back with the id of the last event that it has."""
        if self._listener is not None and self._live is None:
            self._listener.hand_over()
        elif self._live is not None:
            self._live.end()

    async def _catch_up(self, listener: Listener) -> None:
        """Send what the tape has until the stream itself can be listened to, or there is no more of it."""
        cursor = self._cursor
        if cursor is None:
            live = self._streams.find(self._session_id, GET_STREAM)
            if live is None or not self._attach(live, listener):
                await listener.end()
            return
        while not listener.is_gone and self._live is None:
            live = self._streams.find(self._session_id, cursor.stream)
            newest = None if live is None else live.tap.newest
            await self._recorder.flush()
            for event in cursor.advance(
                await self._store.get_frames(self._session_id, stream=cursor.stream, after=cursor.seq)
            ):
                await listener.write(event)
                self._sent_events += 1
                self._sent_bytes += len(event)
            if cursor.has_gap:
                await self._say_what_is_missing(listener, cursor)
            elif live is not None:
                await self._join(live, newest, listener, cursor)
            elif cursor.is_done or not await self._is_read(cursor, listener):
                await listener.end()

    async def _is_read(self, cursor: Cursor, listener: Listener) -> bool:
        """Return whether the stream is read, by another replica or from now on by this one."""
        return await self._follow(cursor, listener) or await self._go_on(cursor)

    async def _join(
        self, live: LiveStream, newest: tuple[int, str | None] | None, listener: Listener, cursor: Cursor
    ) -> None:
        """Listen to the stream, if the listener has all that came before."""
        if cursor.has(live.tap.newest):
            if not self._attach(live, listener):
                await live.over.wait()
        elif newest is not None and not cursor.has(newest):
            raise StoreDown("The session store does not take what the stream brings: try again.")

    async def _follow(self, cursor: Cursor, listener: Listener) -> bool:
        """Wait for news of a stream that another replica reads; return whether one does."""
        owner = await self._streams.owners.other(self._session_id, cursor.stream)
        if owner is None:
            return await self._wait_for_claim(cursor)
        await self._tell(owner, cursor, listener)
        frames = self._store.follow_frames(self._session_id, stream=cursor.stream, after=cursor.seq)
        async with aclosing(frames):
            with anyio.move_on_after(_LOOK_AGAIN):
                if await anext(frames, None) is None:
                    await listener.end()  # the session has ended
        return True

    async def _tell(self, owner: str, cursor: Cursor, listener: Listener) -> None:
        """Tell the replica that reads the stream that somebody listens here, before it waits for that."""
        now = time.monotonic()
        if owner != self._told:
            self._told, self._tell_after, self._tell_at = owner, _TELL_AGAIN, now
        if now < self._tell_at and not self._has_taken_much:
            return
        self._tell_at = now + self._tell_after
        self._tell_after = min(2 * self._tell_after, LISTENING / 2)
        self._sent_events = self._sent_bytes = 0
        replica = self._streams.owners.id
        has = cursor.event_id
        await self._streams.owners.send(
            owner, Listen(self._session_id, cursor.stream, replica, self._name, listener.since, has)
        )

    @property
    def _has_taken_much(self) -> bool:
        """Whether the stream's owner may be about to wait for somebody who listens."""
        limits = self._streams.settings
        return 2 * self._sent_events >= limits.adopt_events or 2 * self._sent_bytes >= limits.adopt_bytes

    async def _wait_for_claim(self, cursor: Cursor) -> bool:
        """Look once more at the tape, whole where the stream has ended. Where nobody was seen to read that,
        wait as long as a replica takes to claim a stream that it has just begun."""
        if self._has_waited or not self._store.shared or cursor.stream == GET_STREAM:
            return False
        self._has_waited = True
        if not self._told and await self._store.get_stream_claim(self._session_id, cursor.stream) is None:
            await anyio.sleep(3 * _SOON)
        return True

    def _attach(self, live: LiveStream, listener: Listener) -> bool:
        """Listen to the stream from now on; return whether that, or somebody's leaving, settles it."""
        if listener.is_gone:
            # Its client left while it caught up: listened to by nobody, the stream would never end.
            if live.listener is None:
                live.wait_for_listener()
            return True
        if self._streams.attach(live, listener):
            self._live = live
            self._streams.followers.pop(self._name, None)
            self._streams.discard(self)  # the stream counts by itself
        return self._live is not None

    async def _say_what_is_missing(self, listener: Listener, cursor: Cursor) -> None:
        lost = AmbiguousDelivery(
            "Some of what the MCP server sent could not be kept, and the answer may be among it. The request "
            "may have been processed: check before you send it again."
        )
        for request_id in cursor.unanswered:
            await listener.write(write_event(lost.message(request_id)))
        await listener.end()
