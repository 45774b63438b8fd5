"""How long to wait before the next attempt."""

from __future__ import annotations

import random
import time
from typing import Final

import anyio

_FIRST: Final = 0.05
LONGEST: Final = 5.0
"""Seconds that a pause takes at most, unless the upstream wants a longer one."""


class Pauses:
    """The waits between attempts: each about twice the one before, and not for ever."""

    __slots__ = ("_budget", "_next", "_since")

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.reset()

    def reset(self) -> None:
        """Begin again: an attempt was a success."""
        self._next = _FIRST
        self._since: float | None = None

    async def wait(self, at_least: float) -> bool:
        """Wait for the next attempt; return whether there is to be one."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        # Not all that were cut at once are to come back at once.
        pause = max(at_least, self._next * random.uniform(0.5, 1.5))  # noqa: S311
        self._next = min(2 * self._next, LONGEST)
        if now + pause - self._since > self._budget:
            return False
        await anyio.sleep(pause)
        return True
