"""What a `SQLiteStore` reads, in a thread: each call is one look at one state of the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from shadowcat_stores._packing import unpack
from shadowcat_stores.base import Clock
from shadowcat_stores.errors import StoreUnavailable
from shadowcat_stores.records import Frame, Session, SessionPage, StreamClaim

MOST: Final = 2**63 - 1
"""The largest number SQLite knows."""

_SESSION: Final = """
    SELECT s.expires_at, r.record FROM sessions AS s JOIN records AS r ON r.session = s.number
    WHERE s.id = ? AND s.expires_at > ?"""
# The plus signs keep the order of the numbers, where the index by expiry would have to be sorted.
_PAGE: Final = """
    SELECT s.expires_at, r.record, s.number FROM sessions AS s JOIN records AS r ON r.session = s.number
    WHERE s.number > ? AND +s.expires_at > ? ORDER BY s.number LIMIT ?"""
_PAGE_OF_UPSTREAM: Final = """
    SELECT s.expires_at, r.record, s.number FROM sessions AS s JOIN records AS r ON r.session = s.number
    WHERE s.number > ? AND +s.expires_at > ? AND s.upstream = ? ORDER BY s.number LIMIT ?"""
# Who has expired is not counted among all, but apart: they are few, as they are buried soon.
_COUNT: Final = """
    SELECT sessions - (SELECT count(*) FROM sessions WHERE expires_at <= ?) FROM totals"""
_ENTRIES: Final = """
    SELECT s.id, s.seq - s.frames, e.last, e.sizes, e.frames
    FROM sessions AS s JOIN entries AS e ON e.session = s.number
    WHERE e.last > max(?, s.seq - s.frames) AND s."""
_TAPE: Final = f"{_ENTRIES}id = ? AND s.expires_at > ? ORDER BY e.last"
_TAIL: Final = f"{_ENTRIES}number = ? ORDER BY e.last"
_LATEST: Final = """
    SELECT number, seq, expires_at FROM sessions
    WHERE number IN (SELECT value FROM json_each(?)) AND +expires_at > ?"""
_EVENT_ID: Final = """
    SELECT t.event_id FROM sessions AS s JOIN streams AS t ON t.session = s.number
    WHERE s.id = ? AND s.expires_at > ? AND t.name = ?"""
_CLAIM: Final = """
    SELECT t.owner, t.token, t.leased_until FROM sessions AS s JOIN streams AS t ON t.session = s.number
    WHERE s.id = ? AND s.expires_at > ? AND t.name = ? AND t.leased_until > ?"""


class Tail(msgspec.Struct, frozen=True):
    """Some frames of a session, and up to which seq there are no others."""

    frames: list[Frame]
    after: int


class Reads:
    """The reading verbs, on a connection of their own. The time is taken when they run."""

    def __init__(self, db: sqlite3.Connection, clock: Clock, file: object) -> None:
        self.db = db
        self.file = file
        """Which file it is: numbers of sessions mean nothing in another one."""
        self._clock = clock
        self._session = msgspec.msgpack.Decoder(Session)

    def session(self, session_id: str) -> Session | None:
        row = self.db.execute(_SESSION, (session_id, self._clock())).fetchone()
        return None if row is None else self._decoded(*row)

    def sessions(self, session_ids: Iterable[str]) -> dict[str, Session]:
        found = {each: self.session(each) for each in session_ids}
        return {each: session for each, session in found.items() if session is not None}

    def count(self) -> int:
        (count,) = self.db.execute(_COUNT, (self._clock(),)).fetchone()
        return int(count)

    def page(self, limit: int, after: int, upstream: str | None) -> SessionPage:
        limit = min(limit, MOST - 1)
        # One more than wanted tells whether there is a next page.
        if upstream is None:
            rows = self.db.execute(_PAGE, (after, self._clock(), limit + 1))
        else:
            rows = self.db.execute(_PAGE_OF_UPSTREAM, (after, self._clock(), upstream, limit + 1))
        found: list[Session] = []
        for expires_at, record, number in rows:
            if len(found) == limit:
                return SessionPage(found, str(after))
            found.append(self._decoded(expires_at, record))
            after = number
        return SessionPage(found)

    def frames(self, session_id: str, stream: str | None, after: int, limit: int | None) -> list[Frame]:
        after = min(after, MOST)
        entries = self.db.execute(_TAPE, (after, session_id, self._clock()))
        return _frames(entries, stream, after, MOST if limit is None else limit)

    def number(self, session_id: str) -> int | None:
        """Return what tells the session from an earlier or later one of the same id."""
        row = self.db.execute(
            "SELECT number FROM sessions WHERE id = ? AND expires_at > ?", (session_id, self._clock())
        ).fetchone()
        return None if row is None else int(row[0])

    def tail(self, file: object, number: int, stream: str | None, after: int, limit: int) -> Tail | None:
        """Return the next frames of the file's session; `None` where it is gone.

        Raises:
            StoreUnavailable: this is another file.
        """
        if file is not self.file:
            raise StoreUnavailable("the file has been replaced: ask for the session, and follow it again")
        latest = self.latest([number]).get(number)
        if latest is None:
            return None
        after = min(after, MOST)
        frames = _frames(self.db.execute(_TAIL, (after, number)), stream, after, limit)
        ends = [after] + [frame.seq for frame in frames[-1:]]
        if len(frames) < limit:
            # Of the frames up to there, those of other streams are not worth another look.
            ends.append(latest[0])
        return Tail(frames, max(ends))

    def latest(self, numbers: Iterable[int]) -> dict[int, tuple[int, float]]:
        """Return the last seq, and the expiry, of those of the sessions that live."""
        rows = self.db.execute(_LATEST, (json.dumps(list(numbers)), self._clock()))
        return {number: (seq, expires_at) for number, seq, expires_at in rows}

    def data_version(self) -> int:
        """Return a number that is another one after any other connection has changed anything."""
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def event_id(self, session_id: str, stream: str) -> str | None:
        row = self.db.execute(_EVENT_ID, (session_id, self._clock(), stream)).fetchone()
        return None if row is None else row[0]

    def claim(self, session_id: str, stream: str) -> StreamClaim | None:
        now = self._clock()
        row = self.db.execute(_CLAIM, (session_id, now, stream, now)).fetchone()
        return None if row is None else StreamClaim(owner=row[0], token=row[1], expires_at=row[2])

    def _decoded(self, expires_at: float, record: bytes) -> Session:
        # A touch moves the expiry beside the record.
        return replace(self._session.decode(record), expires_at=expires_at)


def _frames(
    entries: Iterable[tuple[str, int, int, bytes, bytes]], stream: str | None, after: int, most: int
) -> list[Frame]:
    """Return the first `most` frames after a seq, of those that are left of the tape."""
    found: list[Frame] = []
    for session_id, trimmed, last, sizes, packed in entries:
        found += unpack(session_id, last, sizes, packed, after=max(after, trimmed), stream=stream)
        if len(found) >= most:
            return found[:most]
    return found
