"""A session's tape in a `SQLiteStore`: its counters, and the entries into which its frames are packed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

from shadowcat_stores._packing import pack, raw_sizes
from shadowcat_stores.records import Frame

_SPARE: Final = 128
"""Trimmed frames that may stay in the entries: to look for them each time costs as much as to write."""

_FIND: Final = """
    SELECT number, seq, frames, frame_bytes, spare, streams, uses, tokens FROM sessions
    WHERE id = ? AND expires_at > ?"""
_KEEP: Final = """
    UPDATE sessions SET seq = ?, frames = ?, frame_bytes = ?, spare = ?, streams = ?, uses = ?, tokens = ?
    WHERE number = ?"""
_INSERT: Final = "INSERT INTO entries (session, last, sizes, frames) VALUES (?, ?, ?, ?)"
_SIZES: Final = "SELECT last, sizes FROM entries WHERE session = ? AND last > ? ORDER BY last"
_DELETE: Final = "DELETE FROM entries WHERE session = ? AND last <= ?"


class Tape:
    """The counters of a session, as they are in its row, and what they count."""

    __slots__ = ("_db", "frame_bytes", "frames", "number", "seq", "spare", "streams", "tokens", "uses")

    def __init__(self, db: sqlite3.Connection, row: tuple[int, ...]) -> None:
        self._db = db
        (
            self.number,
            self.seq,
            self.frames,
            self.frame_bytes,
            self.spare,
            self.streams,
            self.uses,
            self.tokens,
        ) = row

    @classmethod
    def find(cls, db: sqlite3.Connection, session_id: str, now: float) -> Tape | None:
        """Return the tape of the session; `None` where that is absent."""
        row = db.execute(_FIND, (session_id, now)).fetchone()
        return None if row is None else cls(db, row)

    def keep(self) -> None:
        """Write the counters."""
        self._db.execute(
            _KEEP,
            (
                self.seq,
                self.frames,
                self.frame_bytes,
                self.spare,
                self.streams,
                self.uses,
                self.tokens,
                self.number,
            ),
        )

    def add(self, frames: Iterable[Frame]) -> None:
        """Append the frames."""
        for entry in pack(frames):
            self.seq += entry.length
            self.frames += entry.length
            self.frame_bytes += entry.raw_bytes
            self._db.execute(_INSERT, (self.number, self.seq, entry.sizes, entry.packed))

    def trim(self, most: float, most_bytes: float) -> None:
        """Forget the oldest frames until they are few and small enough, but not the newest one.

        Those that are too many are only counted, until there are enough of them to be worth a look.
        """
        if self.frames > most:
            too_many = self.frames - max(int(most), 1)
            self.frames -= too_many
            self.spare += too_many
        if self.frame_bytes <= most_bytes and self.spare < _SPARE:
            return
        for size in self._sizes():
            if self.spare:
                self.spare -= 1
            elif self.frames > 1 and self.frame_bytes > most_bytes:
                self.frames -= 1
            else:
                break
            self.frame_bytes -= size
        self._db.execute(_DELETE, (self.number, self.seq - self.frames))

    def _sizes(self) -> Iterator[int]:
        """Yield the sizes of the messages that are counted, the oldest first."""
        gone = self.seq - self.frames - self.spare
        for last, sizes in self._db.execute(_SIZES, (self.number, gone)):
            of_entry = raw_sizes(sizes)
            yield from of_entry[max(gone - last, -len(of_entry)) :]

    def clear(self) -> int:
        """Forget all frames; return how many there were."""
        dropped, self.frames, self.frame_bytes, self.spare = self.frames, 0, 0, 0
        self._db.execute(_DELETE, (self.number, self.seq))
        return dropped
