"""Who follows frames in a `SQLiteStore`, and how they hear of new ones: from this process and from others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Final

from shadowcat_stores._sqlite.reads import Reads
from shadowcat_stores.base import Clock

_LOOK_EVERY: Final = 0.05
"""Seconds between two looks for what other processes have written, while somebody follows."""


class Follower:
    """One who follows a session's frames."""

    def __init__(self, after: int) -> None:
        self.after = after
        """What it has."""
        self.changed = asyncio.Event()
        """Set when there may be more."""


class Tails:
    """Those who follow, by the number of their session.

    They belong to the event loop; the threads only read.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._followers: dict[int, list[Follower]] = {}
        self._joined = 0
        self._seen: object = None
        self._first_expiry = 0.0

    # -- in the event loop --------------------------------------------------------------------------

    @contextmanager
    def follow(self, number: int, after: int) -> Iterator[Follower]:
        """Hear of the session's changes. What came before is for the follower to read, after this."""
        follower = Follower(after)
        self._followers.setdefault(number, []).append(follower)
        self._joined += 1
        try:
            yield follower
        finally:
            followers = self._followers[number]
            followers.remove(follower)
            if not followers:
                del self._followers[number]

    def wake(self, numbers: Iterable[int]) -> None:
        """Let those who follow one of the sessions look at it."""
        for number in numbers:
            for follower in self._followers.get(number, ()):
                follower.changed.set()

    def wake_all(self) -> None:
        """Let everyone look."""
        self.wake(list(self._followers))

    # -- in the threads -----------------------------------------------------------------------------

    def is_followed(self, numbers: Set[int]) -> bool:
        """Return whether somebody follows one of these sessions: to interrupt the event loop for nobody costs
        some 10 µs."""
        return any(number in self._followers for number in numbers)

    def interval(self) -> float | None:
        """Return the seconds between two looks; `None` where nobody follows."""
        return _LOOK_EVERY if self._followers else None

    def look(self, on: Reads) -> list[int]:
        """Return the sessions that have more for a follower, or are gone.

        While nothing changes and nothing expires this is one small question, however many follow.
        """
        now = self._clock()
        # Each connection counts the changes for itself. Whoever has joined may be the first to expire.
        seen = (on, on.data_version(), self._joined)
        if seen == self._seen and now < self._first_expiry:
            return []
        self._seen = seen
        # Copied at once, without anything of the event loop in between; who leaves then is woken for nothing.
        followed = {
            number: min([follower.after for follower in followers], default=0)
            for number, followers in list(self._followers.items())
        }
        latest = on.latest(followed)
        self._first_expiry = min([expires_at for _, expires_at in latest.values()], default=math.inf)
        return [each for each, after in followed.items() if each not in latest or latest[each][0] > after]
