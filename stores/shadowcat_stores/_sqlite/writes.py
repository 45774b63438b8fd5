"""What a `SQLiteStore` writes, in a thread and in a transaction that the caller begins and ends."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from shadowcat_stores._sqlite.streams import claim_stream, newest_token, use_stream
from shadowcat_stores._sqlite.tape import Tape
from shadowcat_stores._sqlite.tidy import bury, clear_graves, expired
from shadowcat_stores.base import Clock
from shadowcat_stores.errors import SessionConflict, SessionExists, SessionNotFound, StoreFull
from shadowcat_stores.records import Frame, StoreLimits, StreamClaim, Window

_RELEASE: Final = """
    UPDATE streams SET leased_until = ?
    WHERE session = (SELECT number FROM sessions WHERE id = ? AND expires_at > ?)
    AND name = ? AND token = ? AND leased_until > ?"""

_NO_WINDOW: Final = Window()
_stream_of = attrgetter("stream")


class Writes:
    """The writing verbs, on a connection of their own. The time is taken when they run.

    What raises a `StoreError` has changed nothing by then; what raises anything else is to be rolled back.
    """

    def __init__(self, db: sqlite3.Connection, clock: Clock, limits: StoreLimits) -> None:
        self.db = db
        self._clock = clock
        self._limits = limits
        self.changed: set[int] = set()
        """The numbers of sessions that got frames or are gone, for those who follow them."""
        self.has_graves = True
        """Whether there may be something to clear away; at first nobody knows."""

    # -- sessions -----------------------------------------------------------------------------------

    def create(self, session_id: str, upstream: str, expires_at: float, record: bytes) -> None:
        now = self._clock()
        row = self.db.execute(
            "SELECT number, expires_at FROM sessions WHERE id = ?", (session_id,)
        ).fetchone()
        if row is not None:
            if row[1] > now:
                raise SessionExists(f"there is a session {session_id!r} already")
            self._bury([row[0]])
        self._require_room(now)
        self.db.execute("UPDATE totals SET sessions = sessions + 1, newest = newest + 1")
        (number,) = self.db.execute("SELECT newest FROM totals").fetchone()
        self.db.execute(
            "INSERT INTO sessions (number, id, upstream, expires_at, revision) VALUES (?, ?, ?, ?, 1)",
            (number, session_id, upstream, expires_at),
        )
        self.db.execute("INSERT INTO records VALUES (?, ?)", (number, record))

    def update(
        self, session_id: str, revision: int, upstream: str, expires_at: float, record: bytes
    ) -> float:
        """Return when the session expires now."""
        row = self.db.execute(
            "SELECT number, revision, expires_at FROM sessions WHERE id = ? AND expires_at > ?",
            (session_id, self._clock()),
        ).fetchone()
        if row is None:
            raise _not_found(session_id)
        number, stored_revision, stored_expires_at = row
        if revision != stored_revision:
            raise SessionConflict(f"session {session_id!r} is at revision {stored_revision}, not {revision}")
        expires_at = max(expires_at, stored_expires_at)
        self.db.execute(
            "UPDATE sessions SET revision = ?, upstream = ?, expires_at = ? WHERE number = ?",
            (revision + 1, upstream, expires_at, number),
        )
        self.db.execute("UPDATE records SET record = ? WHERE session = ?", (record, number))
        return expires_at

    def delete(self, session_id: str) -> bool:
        tape = self._tape(session_id)
        if tape is None:
            return False
        self._bury([tape.number])
        return True

    def touch(self, session_id: str, expires_at: float) -> bool:
        touched = self.db.execute(
            "UPDATE sessions SET expires_at = max(expires_at, ?) WHERE id = ? AND expires_at > ?",
            (expires_at, session_id, self._clock()),
        )
        return touched.rowcount > 0

    # -- frames -------------------------------------------------------------------------------------

    def append(self, frames: Sequence[Frame], keep: Window | None) -> list[int]:
        """Return the seq of each frame; 0 for one that was not stored."""
        places: dict[str, list[int]] = {}
        for place, frame in enumerate(frames):
            places.setdefault(frame.session_id, []).append(place)
        seqs = [0] * len(frames)
        bounds = self._bounds(keep)
        for session_id, of_session in places.items():
            tape = self._tape(session_id)
            if tape is not None:
                stored = self._append_to(tape, [frames[place] for place in of_session], bounds)
                for place, seq in zip(of_session, stored, strict=True):
                    seqs[place] = seq
        return seqs

    def append_one(self, frame: Frame, keep: Window | None) -> int:
        (seq,) = self._append_to(self._require(frame.session_id), [frame], self._bounds(keep))
        return seq

    def _append_to(self, tape: Tape, frames: list[Frame], bounds: tuple[float, float]) -> list[int]:
        seqs: list[int] = []
        stored: list[Frame] = []
        now = self._clock()
        # The frames in a row of one stream use it once: nothing gets in between.
        for stream, run in groupby(frames, key=_stream_of):
            newest: int | None = None
            event_id: str | None = None
            for frame in run:
                if frame.token > 0 and stream is not None:
                    if newest is None:
                        newest = newest_token(self.db, tape, stream)
                    if frame.token < newest:
                        seqs.append(0)
                        continue
                stored.append(frame)
                seqs.append(tape.seq + len(stored))
                if frame.event_id is not None and frame.direction == "server":
                    event_id = frame.event_id
            if stream is not None and event_id is not None:
                use_stream(self.db, tape, stream, now, self._limits.streams, event_id=event_id)
        tape.add(stored)
        tape.trim(*bounds)
        tape.keep()
        self.changed.add(tape.number)
        return seqs

    def _bounds(self, keep: Window | None) -> tuple[float, float]:
        """Return how many frames and bytes a tape may have."""
        limits, keep = self._limits, keep or _NO_WINDOW
        return _least(limits.frames, keep.frames), _least(limits.frame_bytes, keep.bytes)

    def delete_frames(self, session_id: str) -> int:
        tape = self._tape(session_id)
        if tape is None:
            return 0
        dropped = tape.clear()
        tape.keep()
        return dropped

    # -- streams ------------------------------------------------------------------------------------

    def store_event_id(self, session_id: str, stream: str, event_id: str) -> None:
        tape = self._require(session_id)
        use_stream(self.db, tape, stream, self._clock(), self._limits.streams, event_id=event_id)
        tape.keep()

    def claim(self, session_id: str, stream: str, owner: str, lease: float) -> StreamClaim | None:
        tape = self._require(session_id)
        claim = claim_stream(
            self.db, tape, stream, self._clock(), self._limits.streams, owner=owner, lease=lease
        )
        if claim is not None:
            tape.keep()
        return claim

    def release(self, session_id: str, stream: str, token: int) -> bool:
        now = self._clock()
        released = self.db.execute(_RELEASE, (float("-inf"), session_id, now, stream, token, now))
        return released.rowcount > 0

    def probe(self) -> None:
        """Write what changes nothing. A transaction that is empty succeeds on a full disk, too."""
        self.db.execute("INSERT INTO graves VALUES (0)")
        self.db.execute("DELETE FROM graves WHERE session = 0")

    # -- clearing away ------------------------------------------------------------------------------

    def tidy(self, most: int) -> bool:
        """Clear away a bounded part of what has expired or was deleted; say whether there is more."""
        numbers = expired(self.db, self._clock(), most)
        self._bury(numbers)
        self.has_graves = clear_graves(self.db, most)
        return self.has_graves or len(numbers) == most

    def _bury(self, numbers: list[int]) -> None:
        if numbers:
            bury(self.db, numbers)
            self.has_graves = True
            self.changed.update(numbers)

    # -- within -------------------------------------------------------------------------------------

    def _require_room(self, now: float) -> None:
        most = self._limits.sessions
        if most is None:
            return
        (stored,) = self.db.execute("SELECT sessions FROM totals").fetchone()
        if stored < most:
            return
        # Room is there if more have expired than are stored beyond the limit; no need to count them all.
        expired = self.db.execute(
            "SELECT 1 FROM sessions WHERE expires_at <= ? LIMIT 1 OFFSET ?", (now, stored - most)
        )
        if expired.fetchone() is None:
            raise StoreFull(f"the store holds {most} live sessions, as many as StoreLimits.sessions allows")

    def _tape(self, session_id: str) -> Tape | None:
        return Tape.find(self.db, session_id, self._clock())

    def _require(self, session_id: str) -> Tape:
        tape = self._tape(session_id)
        if tape is None:
            raise _not_found(session_id)
        return tape


def _least(*bounds: int | None) -> float:
    return min((bound for bound in bounds if bound is not None), default=math.inf)


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session {session_id!r}")
