"""A session's streams, of which a `SQLiteStore` remembers those used last."""

from __future__ import annotations

import sqlite3
from typing import Final

from shadowcat_stores._sqlite.tape import Tape
from shadowcat_stores.records import StreamClaim

_FREE: Final = float("-inf")
"""When the lease of a stream that nobody owns has ended."""

_KNOWN: Final = "SELECT used, owner, token, leased_until FROM streams WHERE session = ? AND name = ?"
_INSERT: Final = """
    INSERT INTO streams (session, used, name, event_id, owner, token, leased_until)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
_KEEP_EVENT_ID: Final = "UPDATE streams SET used = ?, event_id = ? WHERE session = ? AND name = ?"
_KEEP_CLAIM: Final = """
    UPDATE streams SET used = ?, owner = ?, token = ?, leased_until = ? WHERE session = ? AND name = ?"""
_FORGET: Final = """
    DELETE FROM streams WHERE session = ? AND name IN (
        SELECT name FROM streams WHERE session = ? AND leased_until <= ? AND name <> ? ORDER BY used LIMIT ?
    )"""


def newest_token(db: sqlite3.Connection, tape: Tape, stream: str) -> int:
    """Return the lowest token that may still write the stream."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    # Where no claim is known, a token that was given before may be of one that was forgotten.
    return tape.tokens + 1 if known is None or known[2] == 0 else int(known[2])


def use_stream(
    db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None, *, event_id: str
) -> None:
    """Store the stream's last event id, which makes it the one used last; forget others if there are many."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    if known is None:
        _insert(db, tape, (stream, event_id, "", 0, _FREE))
    else:
        _use(tape, known[0])
        db.execute(_KEEP_EVENT_ID, (tape.uses, event_id, tape.number, stream))
    _forget(db, tape, stream, now, most)


def claim_stream(
    db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None, *, owner: str, lease: float
) -> StreamClaim | None:
    """Store a new claim or renew the owner's; `None` while another owner's lease runs."""
    known = db.execute(_KNOWN, (tape.number, stream)).fetchone()
    used, newest_owner, token, leased_until = known or (0, "", 0, _FREE)
    if leased_until <= now:
        tape.tokens += 1
        token = tape.tokens
    elif newest_owner != owner:
        return None
    if known is None:
        _insert(db, tape, (stream, None, owner, token, now + lease))
    else:
        _use(tape, used)
        db.execute(_KEEP_CLAIM, (tape.uses, owner, token, now + lease, tape.number, stream))
    _forget(db, tape, stream, now, most)
    return StreamClaim(owner=owner, token=token, expires_at=now + lease)


def _use(tape: Tape, used: int) -> None:
    """Count a use of the stream that was used last then, unless it was the last one anyway."""
    if used != tape.uses:
        tape.uses += 1


def _insert(db: sqlite3.Connection, tape: Tape, stream: tuple[object, ...]) -> None:
    tape.uses += 1
    tape.streams += 1
    db.execute(_INSERT, (tape.number, tape.uses, *stream))


def _forget(db: sqlite3.Connection, tape: Tape, stream: str, now: float, most: int | None) -> None:
    if most is not None and tape.streams > most:
        forgotten = db.execute(_FORGET, (tape.number, tape.number, now, stream, tape.streams - most))
        tape.streams -= forgotten.rowcount
