"""How a `SQLiteStore` clears away: a session is gone at once, what it leaves behind goes in small steps."""

from __future__ import annotations

import sqlite3
from typing import Final

_GRAVE: Final = "INSERT INTO graves SELECT number FROM sessions WHERE number = ? AND (seq > 0 OR uses > 0)"
_EXPIRED: Final = "SELECT number FROM sessions WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
_SOME_ENTRIES: Final = """
    DELETE FROM entries WHERE session = ? AND last IN (
        SELECT last FROM entries WHERE session = ? ORDER BY last LIMIT ?
    )"""
_SOME_STREAMS: Final = """
    DELETE FROM streams WHERE session = ? AND name IN (
        SELECT name FROM streams WHERE session = ? ORDER BY name LIMIT ?
    )"""

_SPARE_PAGES: Final = 64
"""Free pages that the file keeps in any case, and up to a quarter of it: new frames want them again."""


def expired(db: sqlite3.Connection, now: float, most: int) -> list[int]:
    """Return the numbers of up to `most` expired sessions, the longest expired first."""
    return [number for (number,) in db.execute(_EXPIRED, (now, most))]


def bury(db: sqlite3.Connection, numbers: list[int]) -> None:
    """Take the sessions out; their frames and streams, which may be many, are cleared away later.

    Nobody finds those: they go by the session's number, which no other session is given.
    """
    each = [(number,) for number in numbers]
    db.executemany(_GRAVE, each)
    db.executemany("DELETE FROM sessions WHERE number = ?", each)
    db.executemany("DELETE FROM records WHERE session = ?", each)
    db.execute("UPDATE totals SET sessions = sessions - ?", (len(numbers),))


def clear_graves(db: sqlite3.Connection, most: int) -> bool:
    """Delete up to `most` rows that buried sessions have left behind; say whether there are more."""
    while most > 0:
        grave = db.execute("SELECT session FROM graves LIMIT 1").fetchone()
        if grave is None:
            return False
        (number,) = grave
        for statement in (_SOME_ENTRIES, _SOME_STREAMS):
            most -= db.execute(statement, (number, number, most)).rowcount
        if most > 0:  # so that was all
            db.execute("DELETE FROM graves WHERE session = ?", grave)
            most -= 1
    return True


def shrink(db: sqlite3.Connection, most: int) -> bool:
    """Take up to `most` free pages off the file where it has many; say whether it had."""
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    if free <= _SPARE_PAGES or free * 4 <= pages:
        return False
    for _ in range(most):
        # One by one: Python takes one step of it, whatever number it is given.
        db.execute("PRAGMA incremental_vacuum(1)")
    return True


def truncate(db: sqlite3.Connection) -> bool:
    """Write the log into the file, whose end is only then cut off; say whether nobody was in the way."""
    (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
