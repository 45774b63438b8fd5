"""The streams of sessions that are read at this moment, each to its end, for whoever listens to it.

A stream outlives its client's connection: who reads it is the request that opened it, and goes on reading
when that client has left. What comes then is on the tape, within limits; who asks for it gets it from there
and takes the stream over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Final, Protocol

import anyio

from shadowcat.counters import Reason
from shadowcat.errors import AmbiguousDelivery, UpstreamBroke, UpstreamError
from shadowcat.headers import Headers
from shadowcat.listener import Listener
from shadowcat.owners import Owners
from shadowcat.recorder import Recorder
from shadowcat.replay import Cursor
from shadowcat.settings import Settings
from shadowcat.sse import COMMENT, write_retry
from shadowcat.tap import EventTap, Taken
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import GET_STREAM, JsonRpcId, StoreError

logger = logging.getLogger("shadowcat.streams")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_LAST_WORDS: Final = 5.0
"""Seconds that a slow client has to take how a stream ended."""
_LOST: Final = (
    "The MCP server's answer was lost on its way and cannot be had again. The request may have been "
    "processed: check before you send it again."
)


class Reopen(Protocol):
    """Opens a stream upstream again."""

    async def __call__(self, after: str | None, reason: Reason = "recover") -> UpstreamResponse:
        """Ask for what comes after the event of this id.

        Raises:
            UpstreamError: the upstream cannot be asked.
        """


class LiveStream:
    """One stream of a session: read from the upstream, numbered, recorded, and sent to who listens."""

    def __init__(
        self,
        session_id: str,
        name: str,
        tap: EventTap,
        reopen: Reopen,
        recorder: Recorder,
        settings: Settings,
        *,
        polled: bool = False,
        again: bool = False,
    ) -> None:
        """Begin.

        Args:
            session_id: whose it is.
            name: the stream's name on the tape.
            tap: what numbers its events.
            reopen: opens it upstream again.
            recorder: what it is recorded with.
            settings: the limits.
            polled: whether its client comes back by itself when the stream ends (since 2025-11-25).
            again: whether it was opened upstream before: then it ends with the last answer, which servers
                do not end it at.
        """
        self.session_id = session_id
        self.name = name
        self.tap = tap
        self.is_standalone = name == GET_STREAM
        self.listener: Listener | None = None
        self.headers: Headers = []
        """Of the upstream's response, where others than the first listener are to get them."""
        self.token = 0
        """Of this replica's claim; 0 where it has none."""
        self.begun = Cursor(name)
        """The place on the tape before its first event."""
        self.left_at: str | None = None
        """The id of the newest event when its listener left."""
        self._reopen = reopen
        self._recorder = recorder
        self._settings = settings
        self._polled = polled
        self._again = again
        self._scope = anyio.CancelScope()
        self._taken_up = anyio.Event()
        self._ahead_bytes = 0
        self._ahead_events = 0
        self._handed_on = False
        """Whether it ends here, to be opened elsewhere."""
        self._goes_on_upstream = False
        """Whether the upstream has ended it only until the client comes back."""
        self._has_ended = False
        self.over = anyio.Event()
        """Set when it has ended, and all there was is recorded."""
        self._pauses = _Pauses(settings.recover_seconds)

    # -- who listens ----------------------------------------------------------------------------------------

    def attach(self, listener: Listener) -> bool:
        """Send what comes from now on to this listener; one that listens already is ended.

        Returns:
            Whether anything will come: not where the stream has ended.
        """
        if self._has_ended:
            return False
        if self.listener is not None:
            self.listener.hand_over()
        self.listener = listener
        self.read_on()
        self._scope.deadline = float("inf")
        return True

    def detach(self, listener: Listener) -> None:
        """Go on without this listener, whose client has left: as far as the limits reach, and no longer than
        `adopt_seconds`."""
        listener.leave()
        if listener is self.listener:
            self.listener = None
            self.left_at = self.tap.last_id
            self.wait_for_listener()

    def read_on(self) -> None:
        """Go on as if its listener had only just left: one listens to it by way of the store."""
        self._ahead_bytes = self._ahead_events = 0
        self._taken_up.set()
        self._taken_up = anyio.Event()
        self.wait_for_listener()

    def wait_for_listener(self) -> None:
        """End it when nobody comes to listen."""
        self._scope.deadline = anyio.current_time() + self._settings.adopt_seconds

    # -- its life -------------------------------------------------------------------------------------------

    async def run(self, response: UpstreamResponse | None, body: AsyncIterator[bytes] | None = None) -> None:
        """Read the stream to its end.

        Args:
            response: the upstream's response, which is closed when it has been read; `None` where it has to
                be opened first.
            body: its chunks, where some have been read of it.
        """
        try:
            with self._scope:
                await self._read_all(response, body)
            self._has_ended = True
            with anyio.move_on_after(_LAST_WORDS):
                await self._conclude()
        finally:
            self._has_ended = True
            self.over.set()

    async def _conclude(self) -> None:
        """Tell who listens how it ended."""
        if self._handed_on and self.listener is not None:
            await self.listener.write(write_retry(self._settings.reconnect_after))
        elif not self._goes_on_upstream:
            if self.tap.unanswered:
                logger.warning("session %s: a stream has ended without its answer", self.session_id)
            for request_id in tuple(self.tap.unanswered):
                lost = self.tap.add(AmbiguousDelivery(_LOST).message(request_id))
                await self._recorder.pass_on(self.session_id, lost.arrivals, self.name, self.token)
                if self.listener is not None:
                    await self.listener.write(lost.data)
        if self.listener is not None:
            await self.listener.end()

    def hand_on(self) -> bool:
        """End it here, where it can be opened elsewhere without a loss; say whether it can."""
        if self.is_standalone or (self._polled and self.tap.upstream_id is not None):
            self._handed_on = True
            self._scope.cancel()
        return self._handed_on

    def end(self) -> None:
        """End it: what is missing is said."""
        self._scope.cancel()

    def drop(self) -> None:
        """End it: nobody waits for what is missing."""
        self.tap.unanswered.clear()
        self._scope.cancel()

    def cancel(self, request_id: JsonRpcId) -> None:
        """Expect no answer to this request any more. Where nobody listens and nothing is missing, end."""
        self.tap.unanswered.discard(request_id)
        if self.listener is None and not self.tap.unanswered:
            self._scope.cancel()

    # -- reading --------------------------------------------------------------------------------------------

    async def _read_all(self, response: UpstreamResponse | None, body: AsyncIterator[bytes] | None) -> None:
        if self.is_standalone and self.listener is None:
            await self._taken_up.wait()
        is_broken = response is None or await self._read(response, body or aiter(response))
        while self._can_go_on(is_broken):
            again = await self._open_again(is_broken)
            if again is None:
                return
            self._again = True
            self.tap.reconnect()
            is_broken = await self._read(again, aiter(again))

    def _can_go_on(self, is_broken: bool) -> bool:
        """Return whether the stream is to be opened again where its connection has ended."""
        if self.is_standalone:
            return self.listener is not None
        if not self.tap.unanswered or self.tap.upstream_id is None:
            return False
        # An upstream that ends it cleanly expects the client back, in its own time. A client that knows
        # nothing of a connection that broke knows nothing of the end of the next one either.
        self._goes_on_upstream = not (is_broken or self._again)
        return not self._goes_on_upstream

    async def _read(self, response: UpstreamResponse, body: AsyncIterator[bytes]) -> bool:
        """Read one connection to its end; return whether it broke."""
        begun, position = time.monotonic(), self.tap.position
        try:
            async for chunk in body:
                await self._pass(self.tap.feed(chunk))
                if self._again and not self.is_standalone and not self.tap.unanswered:
                    break
        except UpstreamBroke:
            return True
        finally:
            await response.aclose()
            if self.tap.position > position or time.monotonic() - begun > _LONGEST_PAUSE:
                self._pauses.reset()
        return False

    async def _pass(self, taken: Taken) -> None:
        # Whoever listens later finds on the tape what is recorded by now, so this is who gets it.
        listener = self.listener
        await self._recorder.pass_on(self.session_id, taken.arrivals, self.name, self.token)
        if not taken.data:
            return
        if listener is not None:
            await listener.write(taken.data)
        elif self.listener is None:
            await self._read_ahead(taken)

    async def _read_ahead(self, taken: Taken) -> None:
        """Wait for somebody who listens where enough was read without."""
        self._ahead_bytes += len(taken.data)
        self._ahead_events += len(taken.arrivals)
        limits = self._settings
        if self._ahead_bytes >= limits.adopt_bytes or self._ahead_events >= limits.adopt_events:
            await self._taken_up.wait()

    # -- where it breaks ------------------------------------------------------------------------------------

    async def _open_again(self, is_broken: bool) -> UpstreamResponse | None:
        """Open the stream upstream where it ended; return `None` where that cannot be done."""
        patience = 0 if is_broken else self._settings.reconnect_after
        while await self._pauses.wait((patience if self.tap.retry is None else self.tap.retry) / 1000):
            try:
                response = await self._reopen(self.tap.upstream_id)
            except UpstreamError:
                continue
            if response.status == 200 and response.media is Media.SSE:
                return response
            await response.aclose()
            if response.status < 500:
                return None
        return None


class _Pauses:
    """The waits between attempts: each about twice the one before, and not for ever."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.reset()

    def reset(self) -> None:
        """Begin again: an attempt was a success."""
        self._next = _FIRST_PAUSE
        self._since: float | None = None

    async def wait(self, at_least: float) -> bool:
        """Wait for the next attempt; return whether there is to be one."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        # Not all that were cut at once are to come back at once.
        pause = max(at_least, self._next * random.uniform(0.5, 1.5))  # noqa: S311
        self._next = min(2 * self._next, _LONGEST_PAUSE)
        if now + pause - self._since > self._budget:
            return False
        await anyio.sleep(pause)
        return True


class LiveStreams:
    """All of them, and every other response that is open. Empty again when every client has gone."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        owners.on_loss = self._claim_again
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
                self._do(self.owners.release(response.session_id, response.name, response.token))

    def claim(self, stream: LiveStream) -> None:
        """Let other replicas know soon that it is read here. Where one of them reads it, end it."""
        if self.owners.id:
            self._do(self._claim(stream))

    async def _claim(self, stream: LiveStream) -> None:
        with suppress(StoreError):
            token = await self.owners.claim(stream.session_id, stream.name)
            if token is None:
                stream.drop()
            elif stream.over.is_set():
                await self.owners.release(stream.session_id, stream.name, token)
            else:
                stream.token = token

    def _claim_again(self) -> None:
        for stream in self.all():
            if stream.token:
                self.claim(stream)

    async def look_after(self) -> None:
        """Let the streams be read on that somebody listens to by way of the store."""
        for stream in self.all():
            if stream.listener is None and await self.owners.is_listened_to(stream.session_id, stream.name):
                stream.read_on()

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self, stream: LiveStream, response: UpstreamResponse | None = None) -> None:
        """Read the stream in a task of its own, until it ends or nobody comes to listen."""
        self.add(stream)
        stream.wait_for_listener()
        self._do(self._run(stream, response))

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
        return set(self._live)

    def all(self) -> list[LiveStream]:
        """Return every session's streams."""
        return [stream for streams in self._live.values() for stream in streams.values()]

    def keep_alive(self, silence: float) -> None:
        """Send a comment where nothing was sent for so many seconds."""
        before = time.monotonic() - silence
        for stream in self.all():
            if stream.listener is not None and stream.listener.wrote_at <= before:
                stream.listener.send_beside(COMMENT)
