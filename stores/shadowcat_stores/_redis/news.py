"""How those who follow a tape hear that there is more: one subscription connection for all of them.

What is published says only that something happened to a session; who hears of it reads. So nothing is lost
when the connection is: whoever listens is woken when there is a new one, and reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from shadowcat_stores._redis.wire import Source, Subscription

logger = logging.getLogger("shadowcat.stores.redis")

SAFETY: Final = 5.0
"""Seconds after which one who waits looks anyway: published messages may be lost."""

_SOON: Final = 0.1
_SELDOM: Final = 5.0


class Listener:
    """One who waits for news of a session."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def clear(self) -> None:
        """Forget the news there were. To be called before one reads."""
        self._news.clear()

    def wake(self) -> None:
        """Tell of news."""
        self._news.set()

    async def wait(self, at_most: float = SAFETY) -> None:
        """Return when there are news, or after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._news.wait()


class News:
    """The channels somebody listens to, and the connection they come on.

    It connects when somebody begins to listen, and again as long as somebody does.
    """

    def __init__(self, source: Callable[[], Source], timeout: float) -> None:
        self.closed = False
        self._source = source
        self._timeout = timeout
        self._listeners: dict[str, set[Listener]] = {}
        self._link: Subscription | None = None
        self._again: asyncio.TimerHandle | None = None
        self._delay = _SOON

    @contextmanager
    def of(self, channel: str) -> Iterator[Listener]:
        """Listen to the channel within the block."""
        listener = Listener()
        others = self._listeners.setdefault(channel, set())
        if not others:
            self._subscribe(channel)
        others.add(listener)
        try:
            yield listener
        finally:
            others.remove(listener)
            if not others:
                del self._listeners[channel]
                if self._link is not None:
                    self._link.send("UNSUBSCRIBE", channel)

    def _subscribe(self, channel: str) -> None:
        if self._link is not None:
            self._link.send("SUBSCRIBE", channel)
        elif self._again is None:
            self._connect()

    def _connect(self) -> None:
        self._again = None
        if self._listeners and not self.closed:
            self._link = Subscription(self._source(), self._timeout, self._heard, self._lost)
            self._link.send("SUBSCRIBE", *self._listeners)

    def _heard(self, channel: bytes) -> None:
        # Also a confirmation: what was published before it went unheard.
        self._delay = _SOON
        for listener in self._listeners.get(channel.decode(), ()):
            listener.wake()

    def _lost(self, error: Exception) -> None:
        self._link = None
        if not self.closed:
            reason = str(error) or type(error).__name__
            logger.warning("following sessions: the subscription was lost (%s); trying again", reason)
            self._again = asyncio.get_running_loop().call_later(self._delay, self._connect)
            self._delay = min(self._delay * 2, _SELDOM)

    def abandon(self) -> None:
        """End the connection without waiting: the store was dropped."""
        self.closed = True
        if self._link is not None:
            self._link.abandon()

    async def aclose(self) -> None:
        """Wake all who listen, to find this closed, and end the connection."""
        self.closed = True
        if self._again is not None:
            self._again.cancel()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()
        if self._link is not None:
            await self._link.aclose()
