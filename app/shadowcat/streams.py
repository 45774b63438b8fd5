"""The streams that are open in this process, and who looks after those that nobody listens to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Final

import anyio

from shadowcat.listener import Listener
from shadowcat.live import LiveStream
from shadowcat.owners import Owners
from shadowcat.sse import COMMENT
from shadowcat.upstream import UpstreamResponse
from shadowcat_stores import SessionStore, StoreError

_COMES_WITHIN: Final = 2.0
"""Seconds within which a listener comes to a stream that was opened for it."""


_AT_A_TIME: Final = 200
"""Sessions that are looked for in the store at a time."""
_BETWEEN: Final = 0.2
"""Seconds between such looks."""


class LiveStreams:
    """All of them, and every other response that is open. Empty again when every client has gone."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        owners.on_loss = self._claim_again
        self.followers: set[Listener] = set()
        """Those who are sent streams from the tape."""
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
        if self.owners.id and not stream.token:
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
                stream.token = 0
                self.claim(stream)

    async def look_after(self, store: SessionStore) -> None:
        """Do what other replicas cannot: end the streams of sessions that were ended there, and read on those
        that somebody listens to there.

        Raises:
            StoreError: as the store does.
        """
        for stream in self.all():
            if stream.listener is None and await self.owners.is_listened_to(stream.session_id, stream.name):
                stream.read_on()
        session_ids = list(self._live)
        for at in range(0, len(session_ids), _AT_A_TIME):
            asked = session_ids[at : at + _AT_A_TIME]
            alive = await store.get_sessions_batch(asked)
            for session_id in asked:
                if session_id not in alive:
                    self.drop(session_id)
            await asyncio.sleep(_BETWEEN)

    def drop(self, session_id: str) -> None:
        """End the streams of a session that has ended: nobody waits for what is missing."""
        for stream in self.of(session_id):
            stream.drop()

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self, stream: LiveStream, response: UpstreamResponse | None = None) -> None:
        """Read the stream in a task of its own, until it ends or nobody comes to listen."""
        self.add(stream)
        stream.wait_for_listener(_COMES_WITHIN)
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
        for listener in tuple(self.followers):
            if listener.wrote_at <= before:
                listener.send_beside(COMMENT)
        for stream in self.all():
            listening = stream.listener
            if listening is not None and listening.wrote_at <= before and not stream.tap.is_inside_event:
                listening.send_beside(COMMENT)
