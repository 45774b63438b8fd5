"""A session's GET: the server's stream that answers no request, and the way back to one that a client lost.

At most one GET of a session is open at the upstream, however often its client comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Final, Generic, TypeVar

import anyio

from shadowcat.errors import EventUnknown
from shadowcat.headers import Headers
from shadowcat.live import LiveStream, Reopen
from shadowcat.live_responses import ResumedResponse
from shadowcat.protocol import is_polled
from shadowcat.recorder import Recorder
from shadowcat.replay import Cursor, find_cursor, was_begun_anew
from shadowcat.settings import Settings
from shadowcat.stream_names import answer_name, get_name, read_minted
from shadowcat.streams import LiveStreams
from shadowcat.tap import EventTap
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat.watch import spared
from shadowcat_stores import GET_STREAM, Session, SessionStore, StoreError

Result = TypeVar("Result")

_UNDER_WAY: Final = 0.25
"""Seconds that another replica's frame may take to the store after its window."""
_REFUSALS_KEPT: Final = 10_000


class Refusal:
    """The upstream's word that it offers no GET stream: read whole, to be given more than once."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


Opened = LiveStream | Refusal | UpstreamResponse | None
"""A session's GET stream, what the upstream answered instead, or `None` where another replica reads it."""
Answer = ResumedResponse | Refusal | UpstreamResponse
"""A stream for the client, or what the upstream answered instead."""
Head = Callable[[Headers], Headers]
"""Returns the headers of a stream's response; given those of the upstream's response, where it has one."""


class Gets:
    """The GET streams of one upstream's sessions."""

    def __init__(
        self, store: SessionStore, recorder: Recorder, streams: LiveStreams, settings: Settings
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._streams = streams
        self._settings = settings
        self._opening: dict[str, _Shared[Opened]] = {}
        self._refused: dict[str, Refusal] = {}

    async def resume(self, session: Session, event_id: str, head: Head, reopen: Reopen) -> Answer:
        """Return the stream from after this event on.

        Raises:
            EventUnknown: the session's tape does not know the event, nor can the upstream.
            StoreError: as the store does.
            UpstreamError: the upstream cannot be asked.
        """
        await self._recorder.flush()
        cursor = await find_cursor(self._store, session.id, event_id)
        if cursor is None and self._store.shared:
            # Another replica may have sent the event a moment ago, and not have recorded it yet.
            await anyio.sleep(self._settings.record_window + _UNDER_WAY)
            cursor = await find_cursor(self._store, session.id, event_id)
        if cursor is not None:
            return self._resumed(session, cursor, head([]), reopen)
        if read_minted(event_id) is not None:
            raise EventUnknown
        return await self._ask_for(session, event_id, head, reopen)

    async def _ask_for(self, session: Session, event_id: str, head: Head, reopen: Reopen) -> Answer:
        """Return what the upstream has after an event that the tape has lost or dropped.

        Which stream that is the upstream alone knows, so here it is one by itself, up to the next answer.
        """
        cursor = Cursor(answer_name([]))
        response = await reopen(cursor.stream, event_id, "forward")
        if not is_stream(response):
            return response
        self._streams.claim(self._take_over(session, cursor, reopen, event_id, 0, response))
        return self._resumed(session, cursor, head(response.headers), reopen)

    async def open(self, session: Session, head: Head, reopen: Reopen) -> Answer:
        """Return the session's GET stream from where its last listener left it, or what there is instead.

        Raises:
            StoreError: as the store does.
            UpstreamError: the upstream cannot be asked.
        """
        live: Opened | None = self._streams.find(session.id, GET_STREAM) or self._refused.get(session.id)
        if live is None:
            live = await self._open(session, reopen)
        if live is None:
            return self._resumed(session, await self._newest(session.id), head([]), reopen)
        if not isinstance(live, LiveStream):
            return live
        place = None
        if live.listener is None:
            place = live.begun
            if live.left_at is not None:
                await self._recorder.flush()
                place = await find_cursor(self._store, session.id, live.left_at) or place
        return self._resumed(session, place, head(live.take_headers()), reopen)

    def forget(self, session_id: str) -> None:
        """Forget what is known of a session that has ended."""
        self._refused.pop(session_id, None)

    def _resumed(
        self, session: Session, cursor: Cursor | None, headers: Headers, reopen: Reopen
    ) -> ResumedResponse:
        async def go_on(cursor: Cursor) -> bool:
            if cursor.stream != GET_STREAM:
                return await self._take_up(session, cursor, reopen)
            opened = await self._open(session, reopen, await self._upstream_id(session, cursor))
            if isinstance(opened, UpstreamResponse):
                await opened.aclose()
            return opened is None or isinstance(opened, LiveStream)

        return ResumedResponse(headers, session.id, cursor, self._store, self._recorder, self._streams, go_on)

    async def _take_up(self, session: Session, cursor: Cursor, reopen: Reopen) -> bool:
        """Read a stream on that nobody reads."""
        after = await self._upstream_id(session, cursor)
        token = await self._claim(session.id, cursor.stream)
        if token is not None and self._streams.find(session.id, cursor.stream) is None:
            self._take_over(session, cursor, reopen, after, token)
        return True

    async def _claim(self, session_id: str, name: str) -> int | None:
        """Claim the stream. A claim that was taken and is not known would last as long as this replica."""
        token: int | None = None
        try:
            with spared():
                token = await self._streams.owners.claim(session_id, name)
        except StoreError:
            self._streams.disclaim(session_id, name)
            raise
        return token

    def _take_over(
        self,
        session: Session,
        cursor: Cursor,
        reopen: Reopen,
        after: str | None,
        token: int,
        response: UpstreamResponse | None = None,
    ) -> LiveStream:
        """Read a stream from here on, as the owner of the claim that has this token."""
        tap = EventTap(
            cursor.stream, self._settings.max_message_bytes, cursor.unanswered, cursor.position, after
        )
        live = LiveStream(
            session.id,
            cursor.stream,
            tap,
            reopen,
            self._recorder,
            self._settings,
            polled=is_polled(session.protocol_version),
            again=True,
        )
        live.token = token
        self._streams.start(live, response)
        return live

    async def _upstream_id(self, session: Session, cursor: Cursor) -> str | None:
        """Return the id with which the upstream takes the stream up; `None` where it knows none of it."""
        event_id = cursor.upstream_id
        if event_id is None or read_minted(event_id) is not None:
            return None
        return None if await was_begun_anew(self._store, session.id, cursor.begun) else event_id

    # -- the GET stream itself ------------------------------------------------------------------------------

    async def _open(self, session: Session, reopen: Reopen, after: str | None = None) -> Opened:
        """Open it upstream, once for all who ask meanwhile."""
        while True:
            opening = self._opening.get(session.id)
            if opening is None:
                forget = partial(self._opening.pop, session.id, None)
                opening = _Shared(self._ask(session, reopen, after), forget)
                self._opening[session.id] = opening
            opened = await opening.result()
            if opening.was_given_up:
                continue
            # A body can be read by one of them only; the others ask for themselves.
            if not isinstance(opened, UpstreamResponse) or opening.is_first():
                return opened

    async def _ask(self, session: Session, reopen: Reopen, after: str | None) -> Opened:
        token = await self._claim(session.id, GET_STREAM)
        if token is None:
            return None
        live: Opened = None
        try:
            live = await self._ask_as_owner(session, reopen, after)
        finally:
            if isinstance(live, LiveStream):
                live.token = token
            else:
                with spared():
                    await self._streams.owners.release(session.id, GET_STREAM, token)
        return live

    async def _ask_as_owner(self, session: Session, reopen: Reopen, after: str | None) -> Opened:
        begun = await self._newest(session.id)
        response = await reopen(GET_STREAM, after, "forward" if after is None else "recover")
        if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
            return await self._refuse(session.id, response)
        if not is_stream(response):
            return response
        tap = EventTap(get_name(), self._settings.max_message_bytes, explicit=True)
        live = LiveStream(session.id, GET_STREAM, tap, reopen, self._recorder, self._settings)
        live.begun = begun
        live.headers = response.headers
        self._streams.start(live, response)
        return live

    async def _newest(self, session_id: str) -> Cursor:
        """Return the place after all that the session's GET stream has brought."""
        cursor = Cursor(GET_STREAM)
        cursor.skip(await self._store.get_frames(session_id, stream=GET_STREAM))
        return cursor

    async def _refuse(self, session_id: str, response: UpstreamResponse) -> Refusal:
        try:
            body = b"".join([chunk async for chunk in response])
        finally:
            await response.aclose()
        if len(self._refused) >= _REFUSALS_KEPT:
            del self._refused[next(iter(self._refused))]
        refusal = self._refused[session_id] = Refusal(response.status, response.headers, body)
        return refusal


def is_stream(response: UpstreamResponse) -> bool:
    """Return whether the response is a stream of events that can be read."""
    is_plain = not response.content_encoding
    return is_plain and response.status == HTTPStatus.OK and response.media is Media.SSE


class _Shared(Generic[Result]):
    """Work that is done once for all who wait for it; given up when nobody does any more."""

    def __init__(self, work: Coroutine[None, None, Result], done: Callable[[], object]) -> None:
        self._waiting = 0
        self._is_taken = False
        self._scope = anyio.CancelScope()  # a task that is cancelled heeds no shield
        self._task = asyncio.get_running_loop().create_task(self._run(work))
        self._task.add_done_callback(lambda _: done())

    async def _run(self, work: Coroutine[None, None, Result]) -> Result | None:
        with self._scope:
            return await work
        return None

    @property
    def was_given_up(self) -> bool:
        """Whether it has no result: who came last has left before its end."""
        return self._scope.cancelled_caught

    def is_first(self) -> bool:
        """Return whether nobody has asked this before."""
        taken, self._is_taken = self._is_taken, True
        return not taken

    async def result(self) -> Result | None:
        """Return what it gives, or raise what it raises; return when it was given up."""
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._scope.cancel()
