"""The tables of a `SQLiteStore`, and the steps from each version of them to the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from shadowcat_stores._packing import pack
from shadowcat_stores.errors import StoreUnusable
from shadowcat_stores.records import Frame

Step: TypeAlias = Callable[[sqlite3.Connection], None]

APPLICATION_ID: Final = 0x4D435053
"""Marks a database as ours, in its header."""

_VERSION_1: Final = (
    # How many sessions there are, expired ones among them, so that nobody has to count; the newest number.
    "CREATE TABLE totals (sessions INTEGER NOT NULL, newest INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    # What changes often, in short rows. Numbers are given once, so pages go by them, and a follower knows
    # its session from a later one of the same id. seq is the last frame's; frames and frame_bytes are what
    # is left of the tape. streams counts the session's streams, uses orders them, tokens is the last given.
    """CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        upstream TEXT NOT NULL,
        expires_at REAL NOT NULL,
        revision INTEGER NOT NULL,
        seq INTEGER NOT NULL DEFAULT 0,
        frames INTEGER NOT NULL DEFAULT 0,
        frame_bytes INTEGER NOT NULL DEFAULT 0,
        streams INTEGER NOT NULL DEFAULT 0,
        uses INTEGER NOT NULL DEFAULT 0,
        tokens INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX sessions_by_expiry ON sessions (expires_at)",
    "CREATE INDEX sessions_by_upstream ON sessions (upstream, number)",
    "CREATE TABLE records (session INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    """CREATE TABLE frames (
        session INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        stream TEXT,
        size INTEGER NOT NULL,
        frame BLOB NOT NULL,
        PRIMARY KEY (session, seq)
    ) WITHOUT ROWID""",
    """CREATE TABLE streams (
        session INTEGER NOT NULL,
        name TEXT NOT NULL,
        used INTEGER NOT NULL,
        event_id TEXT,
        owner TEXT NOT NULL,
        token INTEGER NOT NULL,
        leased_until REAL NOT NULL,
        PRIMARY KEY (session, name)
    ) WITHOUT ROWID""",
    "CREATE INDEX streams_by_use ON streams (session, used)",
    # Sessions that are gone and whose frames and streams are not yet.
    "CREATE TABLE graves (session INTEGER PRIMARY KEY)",
)


_VERSION_2: Final = (
    # Of the frames that frame_bytes counts and the entries hold, those that are trimmed from the tape.
    "ALTER TABLE sessions ADD COLUMN spare INTEGER NOT NULL DEFAULT 0",
    # Many frames packed into a row, last being the seq of the last one. In the order in which they were
    # written, not by session: a transaction writes for many sessions, and so changes few pages.
    """CREATE TABLE entries (
        place INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        last INTEGER NOT NULL,
        sizes BLOB NOT NULL,
        frames BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX entries_by_session ON entries (session, last)",
)


def _create(db: sqlite3.Connection) -> None:
    for statement in _VERSION_1:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _pack_frames(db: sqlite3.Connection) -> None:
    for statement in _VERSION_2:
        db.execute(statement)
    decode = msgspec.msgpack.Decoder(Frame).decode
    # Without those of sessions that are gone, which are cleared away at once so.
    rows = db.execute("""
        SELECT s.number, s.seq - s.frames, f.frame FROM frames AS f JOIN sessions AS s ON s.number = f.session
        ORDER BY f.session, f.seq""")
    for (number, last), tape in groupby(rows, key=itemgetter(0, 1)):
        for entry in pack(decode(frame) for _, _, frame in tape):
            last += entry.length
            db.execute(
                "INSERT INTO entries (session, last, sizes, frames) VALUES (?, ?, ?, ?)",
                (number, last, entry.sizes, entry.packed),
            )
    db.execute("DROP TABLE frames")


STEPS: tuple[Step, ...] = (_create, _pack_frames)
"""Step n brings a database from version n to n + 1; version 0 is an empty file."""


def version_of(db: sqlite3.Connection, path: Path, steps: Sequence[Step] | None = None) -> int:
    """Return the version of the database's schema.

    Raises:
        StoreUnusable: it is newer than the steps lead to, or the database is somebody else's.
    """
    known = len(STEPS if steps is None else steps)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID and not _is_empty(db):
        raise StoreUnusable(f"{path} is a database of another program: name another file")
    if version > known:
        raise StoreUnusable(
            f"{path} is of schema version {version}, and this version of shadowcat-mcp knows up to {known}: "
            "upgrade shadowcat-mcp, or name another file"
        )
    return int(version)


def is_current(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether the database has this version's schema.

    Raises:
        StoreUnusable: it is newer, or somebody else's.
    """
    return version_of(db, path) == len(STEPS)


def migrate(db: sqlite3.Connection, path: Path, steps: Sequence[Step] | None = None) -> None:
    """Take the steps that the database lacks, all or none."""
    steps = STEPS if steps is None else steps
    if version_of(db, path, steps) == len(steps):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Anew: another process may just have taken them.
        for step in steps[version_of(db, path, steps) :]:
            step(db)
        db.execute(f"PRAGMA user_version = {len(steps)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
