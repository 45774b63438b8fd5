"""Stores with one deliberate defect each: what the contract suite has to notice, and under which clause."""

import math
from collections.abc import AsyncGenerator, Iterable, Sequence

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from shadowcat_stores import (
    Clock,
    Frame,
    MemoryStore,
    Session,
    SessionConflict,
    SessionExists,
    SessionNotFound,
    SessionPage,
    StoreFull,
    StoreLimits,
    StreamClaim,
    Window,
)
from shadowcat_stores._memory_index import Entry, Index, StreamState
from tests.stores.shared import SharedMemoryStore


class LastCreateWins(MemoryStore):
    async def create_session(self, session: Session) -> Session:
        if await self.get_session(session.id) is not None:
            raise SessionExists
        await anyio.lowlevel.checkpoint()
        await self.delete_session(session.id)
        return await super().create_session(session)


class LivesAtItsExpiry(MemoryStore):
    def _begin(self) -> None:
        exact = self.clock
        self.clock = lambda: math.nextafter(exact(), 0)
        try:
            super()._begin()
        finally:
            self.clock = exact


class GivesTheBornExpiredAMoment(MemoryStore):
    async def create_session(self, session: Session) -> Session:
        alive = max(session.expires_at, self.clock() + 1)
        created = await super().create_session(replace(session, expires_at=alive))
        return replace(created, expires_at=session.expires_at)


class RefusesTheBornExpired(MemoryStore):
    async def create_session(self, session: Session) -> Session:
        if session.expires_at <= self.clock():
            raise SessionNotFound
        return await super().create_session(session)


class CutsAtNul(MemoryStore):
    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        cut = replace(frame.envelope, raw=frame.envelope.raw.partition(b"\0")[0])
        return await super().add_frame(replace(frame, envelope=cut), keep=keep)


class HandsOutItsOwnRecord(MemoryStore):
    async def get_session(self, session_id: str) -> Session | None:
        entry = self._find(session_id)
        return None if entry is None else entry.record


class IgnoresTheRevision(MemoryStore):
    async def update_session(self, session: Session) -> Session:
        stored = self._require(session.id).record
        return await super().update_session(replace(session, revision=stored.revision))


class DeleteLeavesLastEventIds(MemoryStore):
    def __init__(self, *, clock: Clock, limits: StoreLimits) -> None:
        super().__init__(clock=clock, limits=limits)
        self._left: dict[str, dict[str, str]] = {}

    async def delete_session(self, session_id: str) -> bool:
        entry = self._find(session_id)
        streams = {} if entry is None else entry.streams or {}
        self._left[session_id] = {name: each.last_event_id or "" for name, each in streams.items()}
        return await super().delete_session(session_id)

    async def create_session(self, session: Session) -> Session:
        created = await super().create_session(session)
        for stream, event_id in self._left.get(session.id, {}).items():
            await self.store_last_event_id(session.id, event_id, stream=stream)
        return created


class NumbersAnewAfterDeletingFrames(MemoryStore):
    async def delete_frames(self, session_id: str) -> int:
        entry = self._find(session_id)
        if entry is not None:
            entry.seq = 0
        return await super().delete_frames(session_id)


class NumbersBeforeItWrites(MemoryStore):
    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        entry = self._require(frame.session_id)
        last = entry.seq
        await anyio.lowlevel.checkpoint()
        entry.seq = last
        return await super().add_frame(frame, keep=keep)


class TouchShortens(MemoryStore):
    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        entry = self._find(session_id)
        if entry is not None:
            entry.record = replace(entry.record, expires_at=expires_at)
        return entry is not None


class UpdateShortens(MemoryStore):
    async def update_session(self, session: Session) -> Session:
        await super().update_session(session)
        entry = self._require(session.id)
        entry.record = replace(entry.record, expires_at=session.expires_at)
        return replace(entry.record, labels=dict(session.labels))


class LeaksAKeyError(MemoryStore):
    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        if cursor is not None and not cursor.isdecimal():
            raise KeyError(cursor)
        return await super().list_sessions(limit=limit, cursor=cursor, upstream=upstream)


class WritesInTwoHalves(MemoryStore):
    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        entry = self._require(frame.session_id)
        before = await self.get_last_event_id(frame.session_id, stream=frame.stream or "")
        seq = await super().add_frame(frame, keep=keep)
        stream = entry.known_stream(frame.stream or "")
        if stream is not None and stream.last_event_id != before:
            stream.last_event_id = before
            await anyio.lowlevel.checkpoint()
            stream.last_event_id = frame.event_id
        return seq


class OpeningAgainClears(MemoryStore):
    async def open(self) -> None:
        if self.is_open:
            self._index = Index()
        await super().open()


class StaysHalfOpen(MemoryStore):
    _opening = False

    async def open(self) -> None:
        if not self._opening:
            self._opening = True
            await anyio.lowlevel.checkpoint()
            await super().open()

    async def aclose(self) -> None:
        self._opening = False
        await super().aclose()


class ClosingForgets(MemoryStore):
    async def aclose(self) -> None:
        await super().aclose()
        self._index = Index()


class WorksUnopened(MemoryStore):
    async def count_sessions(self) -> int:
        return await super().count_sessions() if self.is_open else 0


class CachesForItself(SharedMemoryStore):
    """Forgets what it cached when it writes itself, and hears of nobody else's writes."""

    def __init__(self, backend: Index, *, clock: Clock, limits: StoreLimits) -> None:
        super().__init__(backend, clock=clock, limits=limits)
        self._cache: dict[str, Session] = {}

    async def get_session(self, session_id: str) -> Session | None:
        self._begin()
        cached = self._cache.get(session_id)
        if cached is None or cached.expires_at <= self.clock():
            cached = await super().get_session(session_id)
        if cached is None:
            return None
        self._cache[session_id] = cached
        return replace(cached, labels=dict(cached.labels))

    async def create_session(self, session: Session) -> Session:
        self._cache.pop(session.id, None)
        return await super().create_session(session)

    async def update_session(self, session: Session) -> Session:
        self._cache.pop(session.id, None)
        return await super().update_session(session)

    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        self._cache.clear()
        return await super().update_sessions_batch(sessions)

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        self._cache.pop(session_id, None)
        return await super().touch_session(session_id, expires_at)

    async def delete_session(self, session_id: str) -> bool:
        self._cache.pop(session_id, None)
        return await super().delete_session(session_id)


class BatchIgnoresItsWindow(MemoryStore):
    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        return await super().add_frames(frames)


class EvictsTheOldest(MemoryStore):
    async def create_session(self, session: Session) -> Session:
        try:
            return await super().create_session(session)
        except StoreFull:
            oldest = await self.list_sessions(limit=1)
            await self.delete_session(oldest.sessions[0].id)
            return await super().create_session(session)


class CountsBeforeItCreates(MemoryStore):
    async def create_session(self, session: Session) -> Session:
        full = self.limits.sessions is not None and await self.count_sessions() >= self.limits.sessions
        await anyio.lowlevel.checkpoint()
        if full:
            raise StoreFull
        bound, self.limits = self.limits, StoreLimits(sessions=None)
        try:
            return await super().create_session(session)
        finally:
            self.limits = bound


class PagesByOffset(MemoryStore):
    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        await super().list_sessions(limit=limit, cursor=cursor)
        everything = (await super().list_sessions(limit=1_000, upstream=upstream)).sessions
        end = int(cursor or 0) + limit
        return SessionPage(everything[end - limit : end], str(end) if end < len(everything) else None)


class AnyFrameSetsTheLastEventId(MemoryStore):
    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        seq = await super().add_frame(frame, keep=keep)
        if seq and frame.stream is not None and frame.event_id is not None:
            await self.store_last_event_id(frame.session_id, frame.event_id, stream=frame.stream)
        return seq


class FollowsFromOneTooEarly(MemoryStore):
    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        async for frame in super().follow_frames(session_id, stream=stream, after=after - 1):
            yield frame


class FollowsForEver(MemoryStore):
    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        found_some = False
        async for frame in super().follow_frames(session_id, stream=stream, after=after):
            yield frame
            found_some = True
        if found_some:
            await anyio.sleep_forever()


class ReleaseForgetsTheToken(MemoryStore):
    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        released = await super().release_stream(session_id, stream, token=token)
        if released:
            entry = self._require(session_id)
            entry.tokens = 0
            self._use_stream(entry, stream).token = 0
        return released


class NumbersTokensByStream(MemoryStore):
    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        entry = self._require(session_id)
        known = entry.known_stream(stream)
        entry.tokens = 0 if known is None else known.token
        return await super().claim_stream(session_id, stream, owner=owner, lease=lease)


class ForgetsWhoWasFencedOut(MemoryStore):
    def _add(self, entry: Entry, frame: Frame, keep: Window | None) -> int:
        known = entry.known_stream(frame.stream or "")
        if known is None or known.token == 0:
            entry.tokens, tokens = 0, entry.tokens
            try:
                return super()._add(entry, frame, keep)
            finally:
                entry.tokens = tokens
        return super()._add(entry, frame, keep)


class ForgetsByName(MemoryStore):
    def _use_stream(self, entry: Entry, stream: str) -> StreamState:
        used = super()._use_stream(entry, stream)
        entry.streams = dict(sorted((entry.streams or {}).items()))
        return used


class ForgetsWhateverTheLease(MemoryStore):
    def _use_stream(self, entry: Entry, stream: str) -> StreamState:
        return entry.use_stream(stream, self.limits.streams, math.inf)


class RemembersEveryStream(MemoryStore):
    def _use_stream(self, entry: Entry, stream: str) -> StreamState:
        return entry.use_stream(stream, None, self.clock())


class RenewsWithANewToken(MemoryStore):
    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        current = await self.get_stream_claim(session_id, stream)
        if current is not None and current.owner == owner:
            await self.release_stream(session_id, stream, token=current.token)
        return await super().claim_stream(session_id, stream, owner=owner, lease=lease)


class StopsAtTheFirstConflict(MemoryStore):
    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        updated: dict[str, Session] = {}
        for session in sessions:
            try:
                updated[session.id] = await self.update_session(session)
            except (SessionConflict, SessionNotFound):
                break
        return updated


SABOTEURS: list[tuple[int, type[MemoryStore]]] = [
    (1, LastCreateWins),
    (2, LivesAtItsExpiry),
    (2, GivesTheBornExpiredAMoment),
    (2, RefusesTheBornExpired),
    (3, CutsAtNul),
    (3, HandsOutItsOwnRecord),
    (4, IgnoresTheRevision),
    (5, DeleteLeavesLastEventIds),
    (6, NumbersAnewAfterDeletingFrames),
    (6, NumbersBeforeItWrites),
    (7, TouchShortens),
    (7, UpdateShortens),
    (8, LeaksAKeyError),
    (9, WritesInTwoHalves),
    (10, OpeningAgainClears),
    (10, StaysHalfOpen),
    (10, ClosingForgets),
    (10, WorksUnopened),
    (11, CachesForItself),
    (12, BatchIgnoresItsWindow),
    (12, EvictsTheOldest),
    (12, CountsBeforeItCreates),
    (12, ForgetsByName),
    (12, ForgetsWhateverTheLease),
    (12, RemembersEveryStream),
    (13, PagesByOffset),
    (14, AnyFrameSetsTheLastEventId),
    (15, FollowsFromOneTooEarly),
    (15, FollowsForEver),
    (16, ForgetsWhoWasFencedOut),
    (16, NumbersTokensByStream),
    (16, ReleaseForgetsTheToken),
    (16, RenewsWithANewToken),
    (17, StopsAtTheFirstConflict),
]
"""Each saboteur and the one clause it breaks."""

ONE_TEST: dict[type[MemoryStore], str] = {
    GivesTheBornExpiredAMoment: "test_a_session_that_is_created_expired_is_absent_at_once",
    RefusesTheBornExpired: "test_a_session_that_is_created_expired_is_absent_at_once",
    StaysHalfOpen: "test_a_store_whose_opening_was_cancelled_can_be_opened",
}
"""The saboteurs that only one test of their clause finds, and which."""
