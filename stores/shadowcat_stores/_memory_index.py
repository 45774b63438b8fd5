"""What `MemoryStore` holds: each session's tape and streams, and the index that finds and expires them."""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_right
from collections import deque
from itertools import count, islice
from operator import attrgetter

import anyio
from msgspec.structs import replace

from shadowcat_stores.records import Frame, Session, Window

_SLACK = 64
"""Removed sessions that an index may hold before it is worth compacting."""

_GONE = Session(id="", created_at=0.0, expires_at=0.0)
"""The record of every removed session: its marker need not hold its own."""

_number_of = attrgetter("number")


class StreamState:
    """What a session knows of one of its streams."""

    __slots__ = ("last_event_id", "leased_until", "owner", "token")

    def __init__(self) -> None:
        self.last_event_id: str | None = None
        self.owner = ""
        self.token = 0
        self.leased_until = float("-inf")


class Entry:
    """A session and all that belongs to it. What an idle session does not need is made when it does."""

    __slots__ = ("alive", "changed", "frame_bytes", "frames", "number", "record", "seq", "streams", "tokens")

    def __init__(self, number: int, record: Session) -> None:
        self.number = number
        self.record = record
        self.alive = True
        self.seq = 0
        self.frame_bytes = 0
        self.frames: deque[Frame] | None = None
        self.streams: dict[str, StreamState] | None = None
        self.tokens = 0
        self.changed: anyio.Event | None = None

    def use_stream(self, name: str, most: int | None, now: float) -> StreamState:
        """Return the stream as the one most recently used, with at most `most` remembered if leases allow."""
        if self.streams is None:
            self.streams = {}
        stream = self.streams.pop(name, None) or StreamState()
        self.streams[name] = stream
        if most is not None and len(self.streams) > most:
            self._forget_streams(len(self.streams) - most, name, now)
        return stream

    def _forget_streams(self, excess: int, at_hand: str, now: float) -> None:
        # Least recently used first. A lease is renewed again and again, so few of them stand in the way.
        streams = self.streams or {}
        idle = (name for name, each in streams.items() if each.leased_until <= now and name != at_hand)
        for name in list(islice(idle, excess)):
            del streams[name]

    def known_stream(self, name: str) -> StreamState | None:
        return None if self.streams is None else self.streams.get(name)

    def is_fenced_out(self, frame: Frame) -> bool:
        if frame.stream is None:
            return False
        stream = self.known_stream(frame.stream)
        if stream is None or stream.token == 0:
            return frame.token <= self.tokens
        return frame.token < stream.token

    def append(self, frame: Frame) -> None:
        if self.frames is None:
            self.frames = deque()
        self.seq += 1
        self.frames.append(replace(frame, seq=self.seq))
        self.frame_bytes += len(frame.envelope.raw)
        if self.changed is not None:
            self.wake()

    def trim(self, window: Window) -> None:
        frames = self.frames
        if frames is None:
            return
        most = sys.maxsize if window.frames is None else window.frames
        most_bytes = sys.maxsize if window.bytes is None else window.bytes
        while len(frames) > 1 and (len(frames) > most or self.frame_bytes > most_bytes):
            self.frame_bytes -= len(frames.popleft().envelope.raw)

    def frames_after(self, seq: int) -> list[Frame]:
        if self.frames is None:
            return []
        held = len(self.frames)
        wanted = min(self.seq - seq, held)
        if wanted <= 0:
            return []
        if wanted * 2 < held:
            # Whoever follows asks for the last few of a long tape, and a deque is slow to skip into.
            newest = list(islice(reversed(self.frames), wanted))
            newest.reverse()
            return newest
        return list(islice(self.frames, held - wanted, None))

    def drop_frames(self) -> int:
        dropped = 0 if self.frames is None else len(self.frames)
        self.frames = None
        self.frame_bytes = 0
        return dropped

    def wake(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    def change(self) -> anyio.Event:
        """Return the event of the next frame, of the session's end or of the store's closing."""
        if self.changed is None:
            self.changed = anyio.Event()
        return self.changed


class Index:
    """The live sessions by id, by age and by expiry.

    Removed ones stay in the latter two as markers until they outnumber the live, so that no operation has
    to search: each costs O(log n) amortised.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Entry] = {}
        self._by_age: list[Entry] = []
        self._by_expiry: list[tuple[float, int, Entry]] = []
        self._numbers = count(1)

    def add(self, record: Session) -> None:
        entry = Entry(next(self._numbers), record)
        self.by_id[record.id] = entry
        self._by_age.append(entry)
        heapq.heappush(self._by_expiry, (record.expires_at, entry.number, entry))

    def remove(self, entry: Entry) -> None:
        entry.alive = False
        entry.drop_frames()
        entry.streams = None
        entry.wake()
        del self.by_id[entry.record.id]
        entry.record = _GONE
        bound = 2 * len(self.by_id) + _SLACK
        if len(self._by_age) > bound:
            self._by_age = [each for each in self._by_age if each.alive]
        if len(self._by_expiry) > bound:
            # In place: a purge that is under way holds the same list.
            self._by_expiry[:] = [item for item in self._by_expiry if item[2].alive]
            heapq.heapify(self._by_expiry)

    def purge(self, now: float) -> None:
        heap = self._by_expiry
        while heap and heap[0][0] <= now:
            _, number, entry = heapq.heappop(heap)
            if not entry.alive:
                continue
            if entry.record.expires_at > now:
                heapq.heappush(heap, (entry.record.expires_at, number, entry))
            else:
                self.remove(entry)

    def older_first(self, after: int, most: int) -> tuple[list[Entry], bool]:
        """Return up to `most` entries with a higher number, removed ones among them, and if more follow."""
        start = bisect_right(self._by_age, after, key=_number_of)
        return self._by_age[start : start + most], start + most < len(self._by_age)
