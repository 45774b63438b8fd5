"""Which file a `SQLiteStore` works on, and what to do when its path does not lead to that file any more."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from shadowcat_stores._sqlite.tidy import truncate
from shadowcat_stores.errors import StoreUnavailable

logger = logging.getLogger("shadowcat.stores.sqlite")

Identity: TypeAlias = tuple[int, int] | None

_PUT_BACK_WITHIN: Final = 3.0
"""Seconds that a missing file is waited for: whoever restores a backup may take the old one away first.

Longer than any other process that has it open takes to notice, and not to go on with the old one either.
"""


class File(msgspec.Struct, frozen=True, eq=False):
    """A file that was opened, and those that SQLite put beside it. Only the same object is the same file."""

    main: Identity
    beside: dict[Path, Identity]


class Place:
    """Where the file is. The writer's thread alone changes what is known of it; the others look at it.

    SQLite itself never notices that a file was deleted or replaced: it would go on with one that has no name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = [path.with_name(f"{path.name}{each}") for each in ("-wal", "-shm")]
        self._missing_since: float | None = None
        self.file: File | None = None
        """The one that is worked on, or was."""
        self.is_lost = False
        """Whether the path has led elsewhere since."""

    # -- in any thread ------------------------------------------------------------------------------

    def require(self) -> File:
        """Return the file that may be opened to be read.

        Raises:
            StoreUnavailable: the path does not lead to the one that is written.
        """
        file = self.file
        if file is None or self.is_lost or _identify(self._path) != file.main:
            raise self.gone()
        return file

    def gone(self) -> StoreUnavailable:
        """Return what to raise while the path does not lead to the file."""
        return StoreUnavailable(
            f"{self._path} was deleted, moved away or replaced while it was in use: put it back, or wait for "
            f"{_PUT_BACK_WITHIN:g} s until a new, empty one is made; what was in it is gone then"
        )

    # -- in the writer's thread ---------------------------------------------------------------------

    def is_held(self) -> bool:
        """Return whether the path still leads to the file. Takes a microsecond or two."""
        if self.file is None or _identify(self._path) != self.file.main:
            self.is_lost = True
            return False
        if self.is_lost:  # and has been put back
            self.is_lost = False
            self._missing_since = None
        return True

    def give_up(self, db: sqlite3.Connection) -> None:
        """Take away what SQLite has put beside the file, lest it be taken to belong to another one there.

        Raises:
            StoreUnavailable: the file may be put back yet, or somebody still reads it.
        """
        if _identify(self._path) is None:
            self._wait()
        # What is in the log goes into the file, wherever that is now.
        try:
            is_empty = truncate(db)
        except sqlite3.Error as exc:
            logger.warning("the log of the file that was at %s is put aside: %s", self._path, exc)
            self._move_away(lambda each: each.replace(f"{each}.old"))
        else:
            if not is_empty:
                raise self.gone()
            self._move_away(Path.unlink)

    def expect(self) -> tuple[Identity, bool]:
        """Return which file is there to be opened, and whether one is to be made.

        Raises:
            StoreUnavailable: it is missing, and somebody may be about to put it back.
        """
        found = _identify(self._path)
        if self.file is not None and found is None:
            self.is_lost = True
            self._wait()
        return found, self.file is None or found is None

    def _wait(self) -> None:
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < _PUT_BACK_WITHIN:
            raise self.gone()

    def take(self, expected: Identity) -> None:
        """Work on the file that was opened, which had better be the expected one.

        Raises:
            StoreUnavailable: it was replaced meanwhile, so nobody knows which one was opened.
        """
        file = File(_identify(self._path), {each: _identify(each) for each in self._beside})
        if expected not in (None, file.main):
            raise self.gone()
        if self.file is None:
            self.file = file
        elif self.is_lost or self.file.main != file.main:
            self.file = file
            if expected is None:
                logger.error("%s was missing and is made anew: all sessions and tapes are gone", self._path)
            else:
                logger.warning("%s is another file than before: what is in that one counts now", self._path)
        self.is_lost = False
        self._missing_since = None

    def _move_away(self, away: Callable[[Path], object]) -> None:
        # Another process may have been first, and those that are there now belong to the new file.
        if self.file is not None:
            for each, opened in self.file.beside.items():
                if opened is not None and _identify(each) == opened:
                    with suppress(OSError):
                        away(each)


def _identify(path: Path) -> Identity:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
