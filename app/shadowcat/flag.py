"""An event that costs nothing until somebody waits for it."""

from __future__ import annotations

import asyncio


class Flag:
    """As `asyncio.Event`, of which each holds 0.8 kB: too much for what idle streams seldom need."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        """Whether it has been set."""
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """Let all go on who wait for it, now and later."""
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Return when it is set."""
        if not self.is_set:
            self._event = self._event or asyncio.Event()
            await self._event.wait()
