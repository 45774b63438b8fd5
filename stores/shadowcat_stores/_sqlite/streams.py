"""A session's counters, and its streams, of which a `SQLiteStore` remembers those used last."""

from __future__ import annotations

import sqlite3
from typing import Final

from shadowcat_stores.records import StreamClaim

_FREE: Final = float("-inf")
"""When the lease of a stream that nobody owns has ended."""

_KNOWN: Final = "SELECT used, owner, token, leased_until FROM streams WHERE session = ? AND name = ?"
_FORGET: Final = """
    DELETE FROM streams WHERE session = ? AND name IN (
        SELECT name FROM streams WHERE session = ? AND leased_until <= ? AND name <> ? ORDER BY used LIMIT ?
    )"""


class Tape:
    """The counters of a session, as they are in its row."""

    __slots__ = ("frame_bytes", "frames", "number", "seq", "streams", "tokens", "uses")

    def __init__(
        self, number: int, seq: int, frames: int, frame_bytes: int, streams: int, uses: int, tokens: int
    ) -> None:
        self.number = number
        self.seq = seq
        self.frames = frames
        self.frame_bytes = frame_bytes
        self.streams = streams
        self.uses = uses
        self.tokens = tokens

    def grow(self, size: int) -> None:
        """Count one more frame."""
        self.seq += 1
        self.frames += 1
        self.frame_bytes += size

    def fits(self, most: int, most_bytes: int) -> bool:
        """Return whether the frames are few and small enough; the newest one always is."""
        return self.frames <= 1 or (self.frames <= most and self.frame_bytes <= most_bytes)

    def shrink(self, size: int) -> None:
        """Count one frame less."""
        self.frames -= 1
        self.frame_bytes -= size


def newest_token(db: sqlite3.Connection, tape: Tape, stream: str) -> int:
    """Return the lowest token that may still write the stream."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    # Where no claim is known, a token that was given before may be of one that was forgotten.
    return tape.tokens + 1 if known is None or known[2] == 0 else int(known[2])


def use_stream(
    db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None, *, event_id: str
) -> None:
    """Store the stream's last event id, which makes it the one used last."""
    _use(db, tape, stream, now, most)
    db.execute(
        "UPDATE streams SET event_id = ? WHERE session = ? AND name = ?", (event_id, tape.number, stream)
    )


def claim_stream(
    db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None, *, owner: str, lease: float
) -> StreamClaim | None:
    """Store a new claim or renew the owner's; `None` while another owner's lease runs."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    _, newest_owner, token, leased_until = known or (0, "", 0, _FREE)
    if leased_until <= now:
        tape.tokens += 1
        token = tape.tokens
    elif newest_owner != owner:
        return None
    _use(db, tape, stream, now, most)
    db.execute(
        "UPDATE streams SET owner = ?, token = ?, leased_until = ? WHERE session = ? AND name = ?",
        (owner, token, now + lease, tape.number, stream),
    )
    return StreamClaim(owner=owner, token=token, expires_at=now + lease)


def _use(db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None) -> None:
    """Make the stream the one used last; forget others where there are too many."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    if known is None:
        tape.uses += 1
        tape.streams += 1
        row = (tape.number, stream, tape.uses, None, "", 0, _FREE)
        db.execute("INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    elif known[0] != tape.uses:
        tape.uses += 1
        place = (tape.uses, tape.number, stream)
        db.execute("UPDATE streams SET used = ? WHERE session = ? AND name = ?", place)
    if most is not None and tape.streams > most:
        forgotten = db.execute(_FORGET, (tape.number, tape.number, now, stream, tape.streams - most))
        tape.streams -= forgotten.rowcount
