"""A client that follows one stream and comes back to it as soon as its connection ends."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from . import messages
from .messages import FIRST_NUMBER, Target
from .streamload import Reader
from .ticks import due

AT_ONCE = 0.01
"""Seconds between a loss and the next attempt. Real clients wait as long as `retry:` says, 1 s by default."""
EVENT_ID = re.compile(rb"^id: ?(tick/\S+)$", re.MULTILINE)


@dataclass(eq=False)
class Follower:
    """Comes back by GET and `Last-Event-ID`; never sends the call again."""

    target: Target
    """Where it goes next time."""
    session: str
    rate: float
    """Events per second: how exact what is measured can be."""
    last_id: str = ""
    away: float = AT_ONCE
    returned: float = 0.0
    """When it last began to connect."""
    attempts: int = 0
    wrong: int = 0
    """Events that are missing, came twice or out of order, and errors in their place."""
    connection: Reader | None = None
    awaited: tuple[float, float, asyncio.Future[float]] | None = None
    task: asyncio.Task[None] = field(init=False)

    def start(self) -> None:
        self.task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.cut()

    def cut(self) -> None:
        if self.connection:
            self.connection.abort()

    async def event_after(self, moment: float, since: float = 0.0) -> float:
        """When the first event comes that was due after `moment`, by a connection begun after `since`."""
        coming = asyncio.get_running_loop().create_future()
        self.awaited = moment, since, coming
        return float(await coming)

    async def _follow(self) -> None:
        request = messages.call(self.target, "ticks", self.session, rate=self.rate, ids=1).fill(FIRST_NUMBER)
        while True:
            self.returned = monotonic()
            self.attempts += 1
            with suppress(OSError):
                self.connection = await Reader.open(self.target, on_event=self._take)
                await self.connection.send(request)
            self.cut()
            await asyncio.sleep(self.away)
            request = messages.resume(self.target, self.session, self.last_id)

    def _take(self, event: bytes) -> None:
        named = EVENT_ID.search(event)
        if named is None or b"data" not in event:
            self.wrong += b'"error"' in event
            return
        this = named[1].decode()
        self.wrong += bool(self.last_id) and _number(this) != _number(self.last_id) + 1
        self.last_id = this
        if self.awaited:
            moment, since, coming = self.awaited
            if due(this) > moment and self.returned > since and not coming.done():
                coming.set_result(monotonic())


def _number(event_id: str) -> int:
    return int(event_id.rpartition("/")[2])
