"""`MemoryStore`: sessions and tapes in this process, gone with it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import ClassVar, NoReturn, Self
from urllib.parse import urlsplit

from msgspec.structs import replace

from shadowcat_stores._memory_index import Entry, Index, StreamState
from shadowcat_stores._url_options import LIMITS, limits_of, read_options
from shadowcat_stores.base import Clock, SessionStore
from shadowcat_stores.errors import (
    SessionConflict,
    SessionExists,
    SessionNotFound,
    StoreFull,
    StoreUnavailable,
)
from shadowcat_stores.records import (
    GET_STREAM,
    Frame,
    Session,
    SessionPage,
    StoreLimits,
    StreamClaim,
    Window,
)

_SCAN = 1_000
"""How many sessions beyond its limit a page looks at, so that a rare upstream does not stop the loop."""


class MemoryStore(SessionStore):
    """Keeps sessions and tapes in this process: bounded, expiring, and gone when the process ends.

    No operation waits for anything, so none can be cancelled half way and none sees another's middle. It
    belongs to one event loop at a time.
    """

    shared: ClassVar[bool] = False

    def __init__(self, *, clock: Clock = time.time, limits: StoreLimits | None = None) -> None:
        super().__init__(clock=clock, limits=limits)
        self._index = Index()
        self._bounds = Window(frames=self.limits.frames, bytes=self.limits.frame_bytes)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the store that `memory://` names, with its limits where the URL has options.

        Raises:
            ValueError: the URL has anything else in it; the message says what it may have.
        """
        parts = urlsplit(url)
        try:
            options = read_options(parts.query)
            limits = limits_of(options)
        except ValueError as exc:
            _refuse(url, str(exc))
        if parts.scheme != "memory" or parts.netloc or parts.path or parts.fragment:
            _refuse(url, "there is nothing to name")
        if unknown := sorted(options.keys() - LIMITS.keys()):
            _refuse(url, f"there is no option {unknown[0]!r}")
        return cls(limits=limits)

    async def aclose(self) -> None:
        """Close the store; what it holds is there again when it is opened again."""
        await super().aclose()
        for entry in self._index.by_id.values():
            entry.wake()

    # -- sessions -----------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> Session:
        """Store a new session; return it with revision 1."""
        if self._find(session.id) is not None:
            raise SessionExists(f"there is a session {session.id!r} already")
        most = self.limits.sessions
        if most is not None and len(self._index.by_id) >= most:
            raise StoreFull(f"the store holds {most} live sessions, as many as StoreLimits.sessions allows")
        stored = replace(session, revision=1, labels=session.labels.copy())
        self._index.add(stored)
        return _copy(stored)

    async def get_session(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent."""
        entry = self._find(session_id)
        return None if entry is None else _copy(entry.record)

    async def update_session(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored."""
        return self._update(self._require(session.id), session)

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with all that belongs to it; say whether there was one."""
        entry = self._find(session_id)
        if entry is None:
            return False
        self._index.remove(entry)
        return True

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        """Let the session live at least until `expires_at`; say whether it lives."""
        entry = self._find(session_id)
        if entry is None:
            return False
        if expires_at > entry.record.expires_at:
            entry.record = replace(entry.record, expires_at=expires_at)
        return True

    async def count_sessions(self) -> int:
        """Return how many sessions live."""
        self._begin()
        return len(self._index.by_id)

    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        """Return up to `limit` sessions, oldest first."""
        _check_limit(limit)
        after = 0 if cursor is None else _number_in(cursor)
        self._begin()
        entries, more = self._index.older_first(after, limit + _SCAN)
        found: list[Session] = []
        for position, entry in enumerate(entries, 1):
            if entry.alive and upstream in (None, entry.record.upstream):
                found.append(_copy(entry.record))
                if len(found) == limit:
                    more = more or position < len(entries)
                    return SessionPage(found, str(entry.number) if more else None)
        return SessionPage(found, str(entries[-1].number) if more else None)

    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        """Update each as `update_session` does; return those updated, by id."""
        self._begin()
        updated: dict[str, Session] = {}
        for session in sessions:
            entry = self._index.by_id.get(session.id)
            if entry is not None and entry.record.revision == session.revision:
                updated[session.id] = self._update(entry, session)
        return updated

    # -- frames -------------------------------------------------------------------------------------

    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        """Append the frame to its session's tape; return the seq it got, 0 where it was fenced out."""
        return self._add(self._require(frame.session_id), frame, keep)

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        """Append many; return the seq of each, 0 for one that was not stored."""
        self._begin()
        entries = (self._index.by_id.get(frame.session_id) for frame in frames)
        return [
            0 if entry is None else self._add(entry, frame, keep)
            for frame, entry in zip(frames, entries, strict=True)
        ]

    async def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        """Return the session's frames in seq order; none where the session is absent."""
        if limit is not None:
            _check_limit(limit)
        entry = self._find(session_id)
        if entry is None:
            return []
        frames = entry.frames_after(after)
        if stream is not None:
            frames = [frame for frame in frames if frame.stream == stream]
        return frames[:limit]

    async def delete_frames(self, session_id: str) -> int:
        """Forget the session's frames; return how many there were. Later ones go on numbering."""
        entry = self._find(session_id)
        return 0 if entry is None else entry.drop_frames()

    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        """Iterate over the frames after seq `after`, then over each new one as it comes."""
        entry = self._find(session_id)
        while entry is not None and entry.alive:
            frames = entry.frames_after(after)
            for frame in frames:
                after = frame.seq
                if stream is None or frame.stream == stream:
                    yield frame
                    if not entry.alive:
                        return
            if not frames:
                await entry.change().wait()
            self._begin()

    # -- streams ------------------------------------------------------------------------------------

    async def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        """Remember the id of the last event seen on the stream."""
        self._use_stream(self._require(session_id), stream).last_event_id = event_id

    async def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        """Return the id of the last event seen on the stream; `None` where none is known."""
        known = self._find_stream(session_id, stream)
        return None if known is None else known.last_event_id

    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        """Become the stream's owner for `lease` seconds from now, or renew one's own lease."""
        entry = self._require(session_id)
        now = self.clock()
        known = entry.known_stream(stream)
        if known is not None and known.leased_until > now and known.owner != owner:
            return None
        claimed = self._use_stream(entry, stream)
        if claimed.leased_until <= now:
            claimed.owner = owner
            entry.tokens += 1
            claimed.token = entry.tokens
        claimed.leased_until = now + lease
        return StreamClaim(owner=owner, token=claimed.token, expires_at=claimed.leased_until)

    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        """End the claim that has this token; say whether it was still in force."""
        claimed = self._find_stream(session_id, stream)
        if claimed is None or claimed.token != token or claimed.leased_until <= self.clock():
            return False
        claimed.leased_until = float("-inf")
        return True

    async def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
        claimed = self._find_stream(session_id, stream)
        if claimed is None or claimed.leased_until <= self.clock():
            return None
        return StreamClaim(owner=claimed.owner, token=claimed.token, expires_at=claimed.leased_until)

    # -- within -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self.is_open:
            raise StoreUnavailable("the store is not open: enter it with `async with store:` or await open()")
        self._index.purge(self.clock())

    def _find(self, session_id: str) -> Entry | None:
        self._begin()
        return self._index.by_id.get(session_id)

    def _require(self, session_id: str) -> Entry:
        entry = self._find(session_id)
        if entry is None:
            raise SessionNotFound(f"there is no session {session_id!r}")
        return entry

    def _find_stream(self, session_id: str, stream: str) -> StreamState | None:
        entry = self._find(session_id)
        return None if entry is None else entry.known_stream(stream)

    def _use_stream(self, entry: Entry, stream: str) -> StreamState:
        return entry.use_stream(stream, self.limits.streams, self.clock())

    def _update(self, entry: Entry, session: Session) -> Session:
        stored = entry.record
        if session.revision != stored.revision:
            raise SessionConflict(
                f"session {session.id!r} is at revision {stored.revision}, not {session.revision}"
            )
        entry.record = replace(
            session,
            revision=stored.revision + 1,
            expires_at=max(session.expires_at, stored.expires_at),
            labels=session.labels.copy(),
        )
        return _copy(entry.record)

    def _add(self, entry: Entry, frame: Frame, keep: Window | None) -> int:
        if frame.token > 0 and entry.is_fenced_out(frame):
            return 0
        entry.append(frame)
        if frame.event_id is not None and frame.stream is not None and frame.direction == "server":
            self._use_stream(entry, frame.stream).last_event_id = frame.event_id
        entry.trim(self._bounds)
        if keep is not None:
            entry.trim(keep)
        return entry.seq


def _refuse(url: str, why: str) -> NoReturn:
    raise ValueError(
        f"{url!r}: {why}: write memory://, if need be with options, each once: memory://?{'=N&'.join(LIMITS)}=N"
    )


def _copy(record: Session) -> Session:
    return replace(record, labels=record.labels.copy())


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit is {limit}: ask for at least 1")


def _number_in(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit()):
        raise ValueError(f"{cursor!r} is no cursor of this store: hand back the one of the previous page")
    return int(cursor)
