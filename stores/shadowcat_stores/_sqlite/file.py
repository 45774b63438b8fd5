"""The file of a `SQLiteStore`: made for its owner alone, opened, and what it means when SQLite fails."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from shadowcat_stores._sqlite.schema import is_current, migrate
from shadowcat_stores.errors import StoreUnavailable, StoreUnusable

_WAL_BYTES: Final = 8 * 1024 * 1024
"""What the write-ahead log is cut back to after it has been longer."""

_CACHE_KIB: Final = 8 * 1024
"""Pages that the writer keeps in memory: what 32 busy tapes need that are written at once."""

_RETRY_AFTER: Final = 0.01
_creating = threading.Lock()

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_HARMLESS: Final = _BUSY | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT}
"""Errors after which a connection is as good as before."""

_VAIN: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
)
"""Kinds of errors that no waiting heals."""
_NO_LOCKS: Final = frozenset(
    {sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_SHMLOCK, sqlite3.SQLITE_IOERR_LOCK}
)
"""How a file system fails that processes cannot share a log on."""
_PASSING: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}
)
"""Why a file cannot be made now, and later perhaps can."""
_LOCAL: Final = "name a file on a local disk"

_DAMAGED: Final = (
    "it is damaged, or no SQLite database: stop whoever uses it, move it away together with its -wal and "
    "-shm files, put a backup in its place if there is one, and start again; or name another file"
)
_REMEDIES: Final = {
    sqlite3.SQLITE_BUSY: (
        "another program keeps it locked: end its transaction (a backup, an open sqlite3 shell), or wait "
        "longer with ?busy_timeout=SECONDS"
    ),
    sqlite3.SQLITE_READONLY: "let this user write to the file and to its directory, or name another file",
    sqlite3.SQLITE_PERM: "let this user write to the file and to its directory, or name another file",
    sqlite3.SQLITE_FULL: "the disk is full: free some space; the store then goes on by itself",
    sqlite3.SQLITE_IOERR: "the disk fails or is full: look at the system's log",
    sqlite3.SQLITE_CANTOPEN: "make its directory, let this user write there, or name another file",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


class Database(msgspec.Struct, frozen=True):
    """Which file, and how it is opened."""

    path: Path
    patience: float
    """Seconds to wait for a lock that somebody else holds."""
    synchronous: str

    def connect_writer(self, *, make: bool) -> sqlite3.Connection:
        """Return a connection to the file.

        Args:
            make: make the file, and bring it to this version's schema, if need be. Never while the store is
                in use: who finds it missing or empty then may find it in the middle of being restored.

        Raises:
            StoreUnusable: it is not ours, or not of this version, or no waiting lets us make or write it.
            StoreUnavailable: it cannot be made now.
            sqlite3.Error: it cannot be opened now.
        """
        if make:
            self._create()
        try:
            # Waits for locks by itself: SQLite's own waiting is coarse, and unfair to whoever came first.
            db = self._connect(timeout=0.0)
            try:
                self._prepare(db, make)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as exc:
            if self._is_vain(exc):
                raise StoreUnusable(str(unavailable(exc, self.path))) from exc
            raise
        return db

    def connect_reader(self) -> sqlite3.Connection:
        """Return a connection to the prepared file that cannot change it."""
        db = self._connect(timeout=self.patience)
        db.execute("PRAGMA query_only = ON")
        return db

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        # mode=rw: SQLite would make a missing file readable for everybody.
        uri = f"{self.path.as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)

    def _create(self) -> None:
        # The -wal and -shm files get the rights of this one. One at a time: to close a file takes away the
        # locks that other connections of this process have on it.
        with _creating:
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                return
            except OSError as exc:
                cannot = f"{self.path} cannot be made ({exc.strerror})"
                if exc.errno in _PASSING:
                    raise StoreUnavailable(f"{cannot}: look at its disk and at the system's limits") from exc
                raise StoreUnusable(f"{cannot}: {_REMEDIES[sqlite3.SQLITE_CANTOPEN]}") from exc

    def _prepare(self, db: sqlite3.Connection, make: bool) -> None:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return self._prepare_once(db, make)
            except sqlite3.Error as exc:
                # Another process may be about the same, and SQLite waits for some locks only.
                if not is_busy(exc) or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_AFTER)  # noqa: TID251 - in a thread of its own

    def _prepare_once(self, db: sqlite3.Connection, make: bool) -> None:
        if not is_current(db, self.path) and not make:
            raise StoreUnavailable(f"{self.path} is not the file it was: put it back, or start again")
        # Before anything is written: only an empty database takes it. It writes in any case, which a file
        # refuses that may only be read: if others have it open, everything else passes.
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnusable(f"{self.path} cannot have a write-ahead log: {_LOCAL}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        db.execute(f"PRAGMA synchronous = {self.synchronous}")
        migrate(db, self.path)

    def _is_vain(self, error: sqlite3.Error) -> bool:
        """Return whether no waiting heals what is in the way."""
        code = _code_of(error)
        if code == sqlite3.SQLITE_CANTOPEN:
            # It also says so where the process, or the disk, can have no more files for the moment.
            return not _may_be_written(self.path)
        return code in _VAIN or getattr(error, "sqlite_errorcode", None) in _NO_LOCKS


def _may_be_written(path: Path) -> bool:
    # Not by opening it: to close it again would take away the locks that this process has on it.
    effective = os.access in os.supports_effective_ids
    return path.is_file() and all(
        os.access(each, os.R_OK | os.W_OK, effective_ids=effective) for each in (path, path.parent)
    )


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether somebody else's lock is in the way."""
    return _code_of(error) in _BUSY


def is_spoiling(error: sqlite3.Error) -> bool:
    """Return whether the connection had better be replaced: what it knows of the file may be wrong."""
    return _code_of(error) not in _HARMLESS


def unavailable(error: sqlite3.Error, path: Path) -> StoreUnavailable:
    """Return what to raise for the error: it says what to do."""
    remedy = _REMEDIES.get(_code_of(error), "look at the file and its disk")
    if getattr(error, "sqlite_errorcode", None) in _NO_LOCKS:
        remedy = f"its file system lets no processes share it: {_LOCAL}"
    return StoreUnavailable(f"{path}: {error}: {remedy}")


def damaged(error: Exception, path: Path) -> StoreUnavailable:
    """Return what to raise for a record that cannot be read."""
    return StoreUnavailable(f"{path}: {error}: {_DAMAGED}")


def _code_of(error: sqlite3.Error) -> int:
    # Errors of the Python module itself have none. The lowest byte is the kind, the rest says more.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
