"""A stream of a session that is read at this moment, to its end, for whoever listens to it.

A stream outlives its client's connection: who reads it is the request that opened it, and goes on reading
when that client has left. What comes then is on the tape, within limits; who asks for it gets it from there
and takes the stream over.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Protocol

import anyio

from shadowcat.begun import Begun
from shadowcat.counters import Reason
from shadowcat.errors import AmbiguousDelivery, SessionUnknown, ShadowcatError, UpstreamBroke
from shadowcat.flag import Flag
from shadowcat.headers import Headers
from shadowcat.listener import Listener
from shadowcat.mail import LISTENING, Listen
from shadowcat.pauses import LONGEST, Pauses
from shadowcat.recorder import Recorder
from shadowcat.replay import Cursor
from shadowcat.settings import Settings
from shadowcat.sse import write_retry
from shadowcat.tap import EventTap, Taken
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import GET_STREAM, JsonRpcId

logger = logging.getLogger("shadowcat.streams")

_LAST_WORDS: Final = 5.0
"""Seconds that a slow client has to take how a stream ended."""
_FIRST_SILENCE: Final = 1.0
_LONGEST_SILENCE: Final = 30.0
"""Seconds without an event after which a stream that was resumed is resumed once more."""
_LOST: Final = (
    "The MCP server's answer was lost on its way and cannot be had again. The request may have been "
    "processed: check before you send it again."
)


class Reopen(Protocol):
    """Opens a stream upstream again."""

    async def __call__(self, stream: str, after: str | None, reason: Reason = "recover") -> UpstreamResponse:
        """Ask for what comes on the stream after the event of this id.

        Raises:
            UpstreamError: the upstream cannot be asked.
        """


class LiveStream:
    """One stream of a session: read from the upstream, numbered, recorded, and sent to who listens."""

    __slots__ = (
        "_again", "_ahead_bytes", "_ahead_events", "_goes_on_upstream", "_handed_on", "_has_ended", "_has_id",
        "_is_moot", "_is_unwanted", "_pauses", "_polled", "_recorder", "_remote_until", "_reopen", "_scope",
        "_settings", "_silence", "_taken_up", "begun", "headers", "is_standalone", "left_at", "listener",
        "name", "over", "remote", "session_id", "tap", "to_say", "token",
    )  # fmt: skip

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
        self.remote: Listen | None = None
        """Who listens at another replica, by way of the store, or was the last to."""
        self.to_say: Sequence[bytes] = ()
        """Messages of the proxy's own, for when it is open upstream again."""
        self.token = 0
        """Of this replica's claim; 0 where it has none."""
        self.begun: Cursor | None = None
        """The place on the tape before its first event, of a GET stream."""
        self.left_at: str | None = None
        """The id of the newest event when its listener left."""
        self.headers: Headers | None = None
        """Of the upstream's response to a GET, for the client that asked for it."""
        self._reopen = reopen
        self._recorder = recorder
        self._settings = settings
        self._polled = polled
        self._again = again
        self._scope = anyio.CancelScope()
        self._taken_up = Flag()
        self._ahead_bytes = 0
        self._ahead_events = 0
        self._has_id = again
        """Whether the client has an id to come back with."""
        self._remote_until = -math.inf
        self._is_moot = False
        """Whether all its requests were cancelled: it goes on only for who listens."""
        self._is_unwanted = False
        self._handed_on = False
        """Whether it ends here, to be opened elsewhere."""
        self._goes_on_upstream = False
        """Whether the upstream has ended it only until the client comes back."""
        self._has_ended = False
        self.over = Flag()
        """Set when it has ended, and all there was is recorded."""
        self._pauses = Pauses(settings.recover_seconds)
        self._silence = _FIRST_SILENCE

    # -- who listens ----------------------------------------------------------------------------------------

    @property
    def is_followed(self) -> bool:
        """Whether somebody listens at another replica, as far as is known."""
        return anyio.current_time() < self._remote_until

    def attach(self, listener: Listener) -> bool:
        """Send what comes from now on to this listener; one that listens already is ended.

        Returns:
            Whether anything will come: not where the stream has ended.
        """
        if self._has_ended:
            return False
        if self.listener is not None:
            self.listener.hand_over()
        self.listener, self._remote_until = listener, -math.inf
        self._read_on()
        self._scope.deadline = math.inf
        return True

    def detach(self, listener: Listener) -> None:
        """Go on without this listener, whose client has left: as far as the limits reach, and no longer than
        `adopt_seconds`."""
        listener.leave()
        if listener is self.listener:
            self.listener = None
            self.left_at = self.tap.last_id
            self.wait_for_listener()

    def follow(self, remote: Listen) -> bool:
        """Go on for somebody who listens at another replica; an older listener is ended where it is here.

        Returns:
            Whether this is the one to go on for: not where a newer one listens.
        """
        listening = self.listener or (self.remote if self.is_followed else None)
        if listening is not None and listening.since > remote.since:
            return False
        if self.listener is not None:
            self.listener.hand_over()
            self.listener, self.left_at = None, self.tap.last_id
        self.remote, self._remote_until = remote, anyio.current_time() + LISTENING
        self.left_at = remote.has or self.left_at
        self.read_on()
        return True

    def take_headers(self) -> Headers:
        """Return the headers of the upstream's response, the first time that they are asked for."""
        headers, self.headers = self.headers, None
        return headers or []

    def read_on(self) -> None:
        """Go on as if its listener had only just left."""
        self._read_on()
        self.wait_for_listener()

    def _read_on(self) -> None:
        self._ahead_bytes = self._ahead_events = 0
        self._taken_up.set()
        self._taken_up = Flag()

    def wait_for_listener(self, at_least: float = 0.0) -> None:
        """End it when nobody comes to listen."""
        until = anyio.current_time() + max(at_least, 0.0 if self._is_moot else self._settings.adopt_seconds)
        self._scope.deadline = max(until, self._remote_until)

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
            if self._is_left_to_upstream():
                self._goes_on_upstream = True
            with suppress(TimeoutError):
                await Begun(self._conclude()).within(_LAST_WORDS)
        finally:
            self._has_ended = True
            self.over.set()

    def _is_left_to_upstream(self) -> bool:
        """Return whether nobody listens who had to be told, and the upstream still knows what is missing."""
        return self._scope.cancelled_caught and self.listener is None and self.tap.upstream_id is not None

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
        """End it here, as soon as it can be opened elsewhere without a loss; say whether it can by now."""
        self._is_unwanted = True
        comes_back = self._polled and self._has_id and self.tap.upstream_id is not None
        if self.is_standalone or comes_back:
            self._handed_on = True
            self._scope.cancel()
        return self._handed_on

    def end(self) -> None:
        """End it: what is missing is said, unless it can be had elsewhere."""
        if not self.hand_on():
            self._scope.cancel()

    def drop(self) -> None:
        """End it: nobody waits for what is missing."""
        self.tap.unanswered.clear()
        self._scope.cancel()

    def cancel(self, request_id: JsonRpcId) -> bool:
        """Expect no answer to this request any more, and return whether one was expected.

        Where nothing else is missing, end as soon as nobody listens.
        """
        if request_id not in self.tap.unanswered:
            return False
        self.tap.unanswered.discard(request_id)
        self._is_moot = not self.tap.unanswered
        if self.listener is None:
            self.wait_for_listener()
        return True

    async def flush(self) -> None:
        """Return when what it has brought is on the tape, or the store does not take it."""
        await self._recorder.flush()

    # -- reading --------------------------------------------------------------------------------------------

    async def _read_all(self, response: UpstreamResponse | None, body: AsyncIterator[bytes] | None) -> None:
        if self.is_standalone and self.listener is None:
            await self._taken_up.wait()
        if response is not None and body is None:
            body = self._until_silent(response)
        is_broken = response is None or body is None or await self._read(response, body)
        while self._can_go_on(is_broken):
            again = await self._open_again(is_broken)
            if again is None:
                return
            self._again = True
            self.tap.reconnect()
            if response is not None and response.watch is not None:
                await response.watch(b"\n\n")  # who reads along is at the event that was cut
                again.watch = response.watch
            while self.to_say:
                message, *self.to_say = self.to_say
                await self._pass(self.tap.add(message))
            is_broken = await self._read(again, self._until_silent(again))

    def _can_go_on(self, is_broken: bool) -> bool:
        """Return whether the stream is to be opened again where its connection has ended."""
        if self.is_standalone:
            return self.listener is not None
        if not self.tap.unanswered or self.tap.upstream_id is None:
            return False
        # An upstream that ends it cleanly expects the client back, in its own time: one of a revision that
        # knows of that. A client that knows nothing of a connection that broke knows nothing of the end of
        # the next one either, and one that has left before its stream began has no id to come back with.
        self._goes_on_upstream = self._polled and not (is_broken or self._again or self.listener is None)
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
        else:
            if self.tap.has_unread:
                self.tap.unanswered.clear()
        finally:
            await response.aclose()
            if self.tap.position > position or time.monotonic() - begun > LONGEST:
                self._pauses.reset()
        return False

    async def _until_silent(self, response: UpstreamResponse) -> AsyncIterator[bytes]:
        """Iterate over the chunks, until no event has come for a while where one is missing.

        There are servers that answer a client which comes back with what they have, and send it nothing of
        what comes later. They are asked again, ever less often.
        """
        chunks, begun = aiter(response), self.tap.position
        heard = anyio.current_time()
        while True:
            if self.tap.position > begun:
                begun, heard = self.tap.position, anyio.current_time()
            chunk = None
            with anyio.CancelScope() as silence:
                if not self.is_standalone:
                    silence.deadline = heard + self._silence
                chunk = await anext(chunks, None)
            if silence.cancelled_caught:
                self._silence = min(2 * self._silence, _LONGEST_SILENCE)
                self._pauses.reset()
            if chunk is None:
                return
            yield chunk

    async def _pass(self, taken: Taken) -> None:
        # Whoever listens later finds on the tape what is recorded by now, so this is who gets it.
        listener = self.listener
        await self._recorder.pass_on(self.session_id, taken.arrivals, self.name, self.token)
        if not taken.data:
            return
        if listener is not None:
            await listener.write(taken.data)
            self._has_id |= bool(taken.arrivals)
            if self._is_unwanted:
                self.hand_on()
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
                response = await self._reopen(self.name, self.tap.upstream_id)
            except SessionUnknown:
                return None
            except ShadowcatError:
                continue
            if response.status == 200 and response.media is Media.SSE:
                return response
            await response.aclose()
            # 409: it has not noticed yet that the connection of before is closed.
            if response.status < 500 and response.status != HTTPStatus.CONFLICT:
                return None
        return None
