"""The streams that are open in this process, and who looks after those that nobody listens to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Final, Protocol

import anyio

from shadowcat.envelope import cancelled_id
from shadowcat.listener import Listener
from shadowcat.live import LiveStream
from shadowcat.mail import Cancel, Leave, Listen, Mail
from shadowcat.owners import Owners
from shadowcat.replay import Cursor, open_streams
from shadowcat.settings import Settings
from shadowcat.sse import COMMENT
from shadowcat.upstream import UpstreamResponse
from shadowcat_stores import GET_STREAM, JsonRpcId, SessionStore, StoreError

_COMES_WITHIN: Final = 2.0
"""Seconds within which a listener comes to a stream that was opened for it."""

_AT_A_TIME: Final = 200
"""Sessions that are looked for in the store at a time."""
_BETWEEN: Final = 0.2
"""Seconds between such looks, and between attempts to claim a stream."""
UNDER_WAY: Final = 0.25
"""Seconds that another replica's frames and claims may take to the store after its window."""


class EndpointStream(Protocol):
    """The one stream of a session over HTTP+SSE, which ends with it."""

    def expect(self, asked: Iterable[JsonRpcId]) -> None:
        """Know that these requests are sent to the server."""

    def forget(self, asked: Iterable[JsonRpcId]) -> None:
        """Expect no answer to these requests any more."""

    def keep_alive(self, before: float) -> None:
        """Send a comment where nothing was sent since then (`time.monotonic`)."""

    def drop(self) -> None:
        """End it: the session has ended."""


class PlainStream(Protocol):
    """A stream that answers a request without a session."""

    def keep_alive(self, before: float) -> None:
        """Send a comment where nothing was sent since then (`time.monotonic`)."""

    def finish(self) -> None:
        """End it as soon as can be, where its client comes back by itself."""


class LiveStreams:
    """All of them, and every other response that is open. Empty again when every client has gone."""

    def __init__(self, owners: Owners, store: SessionStore, settings: Settings) -> None:
        self.owners = owners
        owners.on_loss = self._claim_again
        owners.on_mail = self._read_mail
        self.settings = settings
        self.followers: dict[str, Listener] = {}
        """Those who are sent streams from the tape, by the names that other replicas know them by."""
        self.endpoints: dict[str, EndpointStream] = {}
        """The streams of sessions over HTTP+SSE, by session."""
        self.sessionless: set[PlainStream] = set()
        """Streams that answer requests without a session."""
        self.draining = False
        """Whether the server stops, so that nothing is to begin that never ends by itself."""
        self._store = store
        self._cancelling = anyio.Lock()
        self._open: set[object] = set()
        self._live: dict[str, dict[str, LiveStream]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, response: object) -> None:
        """Count the response as open."""
        self._open.add(response)
        if isinstance(response, LiveStream):
            self._live.setdefault(response.session_id, {})[response.name] = response

    def discard(self, response: object) -> None:
        """Count it as closed. A second time does nothing."""
        self._open.discard(response)
        if isinstance(response, LiveStream) and self.find(response.session_id, response.name) is response:
            of_session = self._live[response.session_id]
            del of_session[response.name]
            if not of_session:
                del self._live[response.session_id]
            if response.token:
                self.do(self._release(response))

    def counted(self, response: UpstreamResponse) -> Callable[[], Awaitable[None]]:
        """Count the upstream's response as open; return what closes it."""
        opened = object()
        self._open.add(opened)

        async def close() -> None:
            self._open.discard(opened)
            await response.aclose()

        return close

    async def _release(self, stream: LiveStream) -> None:
        # Not before all of it is on the tape: who follows it there takes a claim that is gone for its end.
        await stream.flush()
        await self.owners.release(stream.session_id, stream.name, stream.token)

    def claim(self, stream: LiveStream) -> None:
        """Let other replicas know soon that it is read here. Where one of them reads it, end it."""
        if self.owners.id and not stream.token:
            self.do(self._claim(stream))

    async def _claim(self, stream: LiveStream) -> None:
        token = await self._claimed(stream.session_id, stream.name)
        if token is None:
            stream.drop()
        elif stream.over.is_set:
            await self.owners.release(stream.session_id, stream.name, token)
        else:
            stream.token = token

    async def _claimed(self, session_id: str, name: str) -> int | None:
        """Claim the stream, as often as it takes: a store that did not answer may have taken the claim."""
        while True:
            try:
                return await self.owners.claim(session_id, name)
            except StoreError:
                await asyncio.sleep(_BETWEEN)

    def disclaim(self, session_id: str, name: str) -> None:
        """Give up a claim of which the store has not said whether it took it."""
        self.do(self._disclaim(session_id, name))

    async def _disclaim(self, session_id: str, name: str) -> None:
        token = await self._claimed(session_id, name)
        if token and self.find(session_id, name) is None:
            await self.owners.release(session_id, name, token)

    def _claim_again(self) -> None:
        for stream in self.all():
            if stream.token:
                stream.token = 0
                self.claim(stream)

    async def look_after(self) -> None:
        """End the streams of sessions that were ended at other replicas.

        Raises:
            StoreError: as the store does.
        """
        session_ids = [*self._live, *self.endpoints]
        for at in range(0, len(session_ids), _AT_A_TIME):
            asked = session_ids[at : at + _AT_A_TIME]
            alive = await self._store.get_sessions_batch(asked)
            for session_id in asked:
                if session_id not in alive:
                    self.drop(session_id)
            await asyncio.sleep(_BETWEEN)

    def drop(self, session_id: str) -> None:
        """End the streams of a session that has ended: nobody waits for what is missing."""
        for stream in self.of(session_id):
            stream.drop()
        if endpoint := self.endpoints.get(session_id):
            endpoint.drop()

    async def missing(self, session_id: str) -> set[JsonRpcId]:
        """Return the requests whose answers the tape does not have and that were not cancelled, of a session
        over HTTP+SSE: those of all replicas, where there are others.

        Raises:
            StoreError: as the store does.
        """
        if not self._store.shared:
            return set()
        cursor = Cursor(GET_STREAM)
        frames = await self._store.get_frames(session_id)
        cursor.skip([frame for frame in frames if frame.stream == GET_STREAM])
        sent = [frame.envelope for frame in frames if frame.direction == "client"]
        cancelled = {cancelled_id(each.raw) for each in sent if each.method == "notifications/cancelled"}
        return cursor.asked - cursor.answered - cancelled

    # -- who listens, and who has cancelled, wherever that is ------------------------------------------------

    def attach(self, stream: LiveStream, listener: Listener) -> bool:
        """Let the listener have what comes from now on, instead of any other; where a newer one listens at
        another replica, end this one.

        Returns:
            Whether the stream, or a newer listener, has it: not where the stream has ended.
        """
        remote = stream.remote
        if remote is not None and stream.is_followed and remote.since > listener.since:
            listener.hand_over()
            return True
        if not stream.attach(listener):
            return False
        if remote is not None:
            stream.remote = None
            self._dismiss(remote)
        return True

    def cancel(self, session_id: str, request_id: JsonRpcId) -> None:
        """Expect no answer to this request any more, on whichever replica."""
        if request_id is None:
            return  # it could not be read; a stream that expects `None` is one whose request nobody knows
        is_here = [stream.cancel(request_id) for stream in self.of(session_id)]
        if self.owners.id and not any(is_here):
            self.do(self._cancel_elsewhere(session_id, request_id))

    async def _cancel_elsewhere(self, session_id: str, request_id: JsonRpcId) -> None:
        for pause in (0.0, self.settings.record_window + UNDER_WAY):
            await asyncio.sleep(pause)
            with suppress(StoreError):
                for name in await self._asked_on(session_id, request_id):
                    owner = await self.owners.other(session_id, name)
                    if owner is not None:
                        await self.owners.send(owner, Cancel(session_id, name, request_id))
                        return

    async def _asked_on(self, session_id: str, request_id: JsonRpcId) -> list[str]:
        """Return the streams that the tape expects this request's answer on."""
        async with self._cancelling:  # one tape in memory at a time, however many a client cancels
            streams = await open_streams(self._store, session_id)
        return [cursor.stream for cursor in streams if request_id in cursor.unanswered]

    def _read_mail(self, mail: Mail) -> None:
        if isinstance(mail, Leave):
            follower = self.followers.get(mail.listener)
            if follower is not None:
                follower.hand_over()
            return
        stream = self.find(mail.session_id, mail.stream)
        if stream is None:
            return
        if isinstance(mail, Cancel):
            stream.cancel(mail.request_id)
            return
        former = stream.remote
        if not stream.follow(mail):
            self._dismiss(mail)
        elif former is not None and former.listener != mail.listener:
            self._dismiss(former)

    def _dismiss(self, remote: Listen) -> None:
        self.do(self.owners.send(remote.replica, Leave(remote.listener)))

    # -- their tasks -----------------------------------------------------------------------------------------

    def do(self, work: Coroutine[None, None, None]) -> None:
        """Do it in a task, which ends with the app at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self, stream: LiveStream, response: UpstreamResponse | None = None) -> None:
        """Read the stream in a task of its own, until it ends or nobody comes to listen."""
        self.add(stream)
        stream.wait_for_listener(_COMES_WITHIN)
        self.do(self._run(stream, response))

    async def _run(self, stream: LiveStream, response: UpstreamResponse | None) -> None:
        try:
            await stream.run(response)
        finally:
            self.discard(stream)
            if response is not None:
                await response.aclose()

    async def settle(self, seconds: float) -> None:
        """Return when the tasks that read streams have ended, after `seconds` at most."""
        with anyio.move_on_after(seconds):
            while self._tasks:  # one that ends may begin another, which gives its claim up
                await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.cancel()

    def find(self, session_id: str, name: str) -> LiveStream | None:
        """Return the session's stream of this name, where it is read by this process."""
        return self._live.get(session_id, {}).get(name)

    def of(self, session_id: str) -> list[LiveStream]:
        """Return the session's streams that are read by this process."""
        return list(self._live.get(session_id, {}).values())

    def session_ids(self) -> set[str]:
        """Return the sessions that have a stream open."""
        return {*self._live, *self.endpoints}

    def all(self) -> list[LiveStream]:
        """Return every session's streams."""
        return [stream for streams in self._live.values() for stream in streams.values()]

    def drain(self) -> None:
        """End what can go on elsewhere, and what only the proxy's end would end."""
        self.draining = True
        for stream in self.all():
            stream.hand_on()
        for each in tuple(self.sessionless):
            each.finish()

    def keep_alive(self, silence: float) -> None:
        """Send a comment where nothing was sent for so many seconds."""
        before = time.monotonic() - silence
        for listener in tuple(self.followers.values()):
            if listener.wrote_at <= before:
                listener.send_beside(COMMENT)
        for endpoint in tuple(self.endpoints.values()):
            endpoint.keep_alive(before)
        for each in tuple(self.sessionless):
            each.keep_alive(before)
        for stream in self.all():
            listening = stream.listener
            if listening is not None and listening.wrote_at <= before and not stream.tap.is_inside_event:
                listening.send_beside(COMMENT)
