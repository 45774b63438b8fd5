"""`SQLiteStore`: sessions and tapes in a file, shared by the processes of one machine."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn, Self, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
import msgspec
from msgspec.structs import replace

from shadowcat_stores._sqlite.file import Database
from shadowcat_stores._sqlite.reads import MOST, Reads
from shadowcat_stores._sqlite.threads import Threads
from shadowcat_stores._sqlite.worker import NOT_OPEN
from shadowcat_stores._sqlite.writes import Writes
from shadowcat_stores._url_options import LIMITS, limits_of, read_options
from shadowcat_stores.base import Clock, SessionStore
from shadowcat_stores.errors import SessionConflict, SessionNotFound, StoreUnavailable
from shadowcat_stores.records import (
    GET_STREAM,
    Frame,
    Session,
    SessionPage,
    StoreLimits,
    StreamClaim,
    Window,
)

T = TypeVar("T")

_READ_AHEAD = 100
"""Frames that a follower reads at a time."""


class SQLiteStore(SessionStore):
    """Keeps sessions and tapes in one SQLite file, which several processes of one machine may share.

    The event loop waits for nothing: one thread writes, with all that waits in one transaction, and two read
    beside it. It runs on asyncio, and `clock` is called from those threads.

    The file and what SQLite puts beside it (`-wal`, `-shm`) are made readable for their owner alone, since
    tapes hold what clients and servers said. It grows with the tapes and shrinks again as sessions expire.

    An operation has been committed when it returns, which outlives the end of the process by any means. Where
    the machine itself goes down (a power cut), the latest of them, about as many as fit in 4 MB of changes,
    may be lost; what is left is consistent. `synchronous="full"` has every transaction written to the disk
    before it is acknowledged, and that takes as long as the disk takes.

    A caller who is cancelled waits for nothing: what had not begun is not done, and what had is done whole or
    not at all. A file that is deleted or replaced while it is in use is noticed by the next write, or within
    two seconds; a missing one is waited for, then made anew.

    Args:
        path: the file; it is made where it is missing, its directory is not.
        clock: what time it is.
        limits: the bounds.
        busy_timeout: seconds to wait for another program that keeps the file locked.
        synchronous: `normal` or `full`: what a power cut may cost (see above).
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock = time.time,
        limits: StoreLimits | None = None,
        busy_timeout: float = 2.0,
        synchronous: str = "normal",
    ) -> None:
        if synchronous not in ("normal", "full"):
            raise ValueError(f"synchronous is {synchronous!r}: write 'normal' or 'full'")
        super().__init__(clock=clock, limits=limits)
        self._database = Database(Path(path).resolve(), busy_timeout, synchronous)
        self._lock = anyio.Lock()
        self._threads: Threads | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the store that `sqlite:///relative/path` or `sqlite:////absolute/path` names.

        Raises:
            ValueError: the URL has anything else in it; the message says what it may have.
        """
        parts = urlsplit(url)
        path = unquote(parts.path.removeprefix("/"))
        if parts.scheme != "sqlite" or parts.netloc or parts.fragment or not path or path.endswith("/"):
            _refuse(url, "it names no file")
        if path == ":memory:":
            raise ValueError(f"{url!r} would be gone with the process: write memory:// for that")
        try:
            options = read_options(parts.query)
            limits = limits_of(options)
            busy_timeout = float(options.get("busy_timeout", 2.0))
        except ValueError as exc:
            _refuse(url, str(exc))
        if unknown := sorted(options.keys() - LIMITS.keys() - {"busy_timeout", "synchronous"}):
            _refuse(url, f"there is no option {unknown[0]!r}")
        if not 0 <= busy_timeout <= 3600:
            _refuse(url, "busy_timeout is no number of seconds up to 3600")
        synchronous = options.get("synchronous", "normal")
        if synchronous not in ("normal", "full"):
            _refuse(url, "synchronous is neither normal nor full")
        return cls(path, limits=limits, busy_timeout=busy_timeout, synchronous=synchronous)

    # -- life ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, which is made or brought to this version's schema if need be."""
        async with self._lock:
            if not self.is_open:
                threads = Threads(self._database, self.clock, self.limits)
                await threads.start()
                self._threads = threads
                await super().open()

    async def aclose(self) -> None:
        """Do what was asked for before, then close the file and end the threads."""
        async with self._lock:
            await super().aclose()
            threads, self._threads = self._threads, None
            if threads is not None:
                with anyio.CancelScope(shield=True):
                    await threads.stop()

    async def ping(self) -> None:
        """Return when the file can be read, and something has been written to it."""
        # The writer first: it is the one that notices what has become of the file, and heals it.
        await self._write(Writes.probe)
        await self._read(Reads.count)

    def __del__(self) -> None:
        threads = getattr(self, "_threads", None)
        if threads is not None:
            warning = f"{self!r} was not closed: use `async with`, or aclose()"
            warnings.warn(warning, ResourceWarning, stacklevel=2, source=self)
            threads.end_soon()

    # -- sessions -----------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> Session:
        """Store a new session; return it with revision 1."""
        stored = replace(session, revision=1, labels=session.labels.copy())
        record = _encode(stored)
        await self._write(lambda on: on.create(stored.id, stored.upstream, stored.expires_at, record))
        return stored

    async def get_session(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent."""
        return await self._read(lambda on: on.session(session_id))

    async def get_sessions_batch(self, session_ids: Iterable[str]) -> dict[str, Session]:
        """Return the live ones among `session_ids`, by id."""
        wanted = list(session_ids)
        return await self._read(lambda on: on.sessions(wanted))

    async def update_session(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored."""
        update = _Update(session)
        expires_at = await self._write(update.run)
        return update.stored(expires_at)

    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        """Update each as `update_session` does; return those updated, by id."""
        updates = [_Update(session) for session in sessions]
        answers = await self._write(lambda on: [update.try_to_run(on) for update in updates])
        done = zip(updates, answers, strict=True)
        return {
            each.session.id: each.stored(expires_at) for each, expires_at in done if expires_at is not None
        }

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with all that belongs to it; say whether there was one."""
        return await self._write(lambda on: on.delete(session_id))

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        """Let the session live at least until `expires_at`; say whether it lives."""
        return await self._write(lambda on: on.touch(session_id, expires_at))

    async def count_sessions(self) -> int:
        """Return how many sessions live."""
        return await self._read(Reads.count)

    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        """Return up to `limit` sessions, oldest first."""
        _check_limit(limit)
        after = 0 if cursor is None else _number_in(cursor)
        return await self._read(lambda on: on.page(limit, after, upstream))

    # -- frames -------------------------------------------------------------------------------------

    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        """Append the frame to its session's tape; return the seq it got, 0 where it was fenced out."""
        return await self._write(lambda on: on.append_one(frame, keep))

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        """Append many; return the seq of each, 0 for one that was not stored."""
        given = list(frames)
        return await self._write(lambda on: on.append(given, keep))

    async def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        """Return the session's frames in seq order; none where the session is absent."""
        if limit is not None:
            _check_limit(limit)
        return await self._running().read_tape(lambda on: on.frames(session_id, stream, after, limit))

    async def delete_frames(self, session_id: str) -> int:
        """Forget the session's frames; return how many there were. Later ones go on numbering."""
        return await self._write(lambda on: on.delete_frames(session_id))

    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        """Iterate over the frames after seq `after`, then over each new one as it comes."""
        # The threads of now: once they are stopped they take no more, also where the store is open again.
        threads = self._running()
        number, file = await threads.read_tape(lambda on: (on.number(session_id), on.file))
        if number is None:
            return
        with threads.tails.follow(number, after) as follower:
            while True:
                follower.changed.clear()
                tail = await threads.read_tape(
                    lambda on: on.tail(file, number, stream, follower.after, _READ_AHEAD)
                )
                if tail is None:
                    return
                for frame in tail.frames:
                    yield frame
                follower.after = tail.after
                if not tail.frames:
                    await follower.changed.wait()

    # -- streams ------------------------------------------------------------------------------------

    async def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        """Remember the id of the last event seen on the stream."""
        await self._write(lambda on: on.store_event_id(session_id, stream, event_id))

    async def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        """Return the id of the last event seen on the stream; `None` where none is known."""
        return await self._read(lambda on: on.event_id(session_id, stream))

    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        """Become the stream's owner for `lease` seconds from now, or renew one's own lease."""
        return await self._write(lambda on: on.claim(session_id, stream, owner, lease))

    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        """End the claim that has this token; say whether it was still in force."""
        return await self._write(lambda on: on.release(session_id, stream, token))

    async def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
        return await self._read(lambda on: on.claim(session_id, stream))

    # -- within -------------------------------------------------------------------------------------

    def _running(self) -> Threads:
        if self._threads is None:
            raise StoreUnavailable(NOT_OPEN)
        return self._threads

    async def _read(self, work: Callable[[Reads], T]) -> T:
        return await self._running().read(work)

    async def _write(self, work: Callable[[Writes], T]) -> T:
        return await self._running().writer.submit(work)


class _Update:
    """An update of a session, made ready outside the thread: the record is still the caller's to change."""

    def __init__(self, session: Session) -> None:
        self.session = replace(session, revision=session.revision + 1, labels=session.labels.copy())
        self._record = _encode(self.session)

    def run(self, on: Writes) -> float:
        session = self.session
        return on.update(session.id, session.revision - 1, session.upstream, session.expires_at, self._record)

    def try_to_run(self, on: Writes) -> float | None:
        try:
            return self.run(on)
        except (SessionConflict, SessionNotFound):
            return None

    def stored(self, expires_at: float) -> Session:
        return replace(self.session, expires_at=expires_at)


_encode = msgspec.msgpack.encode


def _refuse(url: str, why: str) -> NoReturn:
    options = f"?{'=N&'.join(LIMITS)}=N&busy_timeout=SECONDS&synchronous=full"
    raise ValueError(
        f"{url!r}: {why}: write sqlite:///file for a path from here or sqlite:////file for one from the "
        f"root, if need be with options, each once: {options}"
    )


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit is {limit}: ask for at least 1")


def _number_in(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and int(cursor) <= MOST):
        raise ValueError(f"{cursor!r} is no cursor of this store: hand back the one of the previous page")
    return int(cursor)
