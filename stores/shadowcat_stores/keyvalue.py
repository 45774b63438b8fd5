"""`KeyValueStore`: a session store out of three primitives, for whoever writes one."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar, TypeVar

import anyio
from msgspec.structs import replace

from shadowcat_stores._keyvalue.held import HeldSession, counters_in
from shadowcat_stores._keyvalue.layout import COUNTERS, END, Kept, decode, expiry_key, key, place_of
from shadowcat_stores._keyvalue.transaction import Transaction
from shadowcat_stores.base import Clock, SessionStore
from shadowcat_stores.errors import (
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

T = TypeVar("T")

_PAGE = 100
_MOST_KEYS = 1_000
_MOST = 2**64 - 1


class KeyValueStore(SessionStore):
    """Keeps every clause of `SessionStore` on a backend of sorted keys and values.

    A subclass brings three primitives: `read`, `scan` and `commit`. What it has of its own to open and to
    close goes into `open` and `aclose`, around those of this class. Every other verb reads what it needs,
    works out what has to change, and commits that on condition that nothing it relied on has changed
    meanwhile; where something has, it begins again. A verb costs one or two reads and one commit, however
    much the store and the session hold.

    Keys and values are bytes, keys of at most 33. What they mean is this class's own affair.
    """

    follow_interval: ClassVar[float] = 0.25
    """Seconds after which those who follow frames look for those of other processes, where `shared` is
    true. What is stored through this object they see at once."""

    def __init__(self, *, clock: Clock = time.time, limits: StoreLimits | None = None) -> None:
        super().__init__(clock=clock, limits=limits)
        self._bounds = Window(frames=self.limits.frames, bytes=self.limits.frame_bytes)
        self._news: dict[bytes, anyio.Event] = {}

    # -- what a subclass brings ---------------------------------------------------------------------

    @abstractmethod
    async def read(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return what is under each of the keys as of one moment, without those that have nothing.

        There are at most a thousand of them.

        Raises:
            StoreUnavailable: the backend cannot be reached or used, here as in the other primitives.
        """

    @abstractmethod
    async def scan(self, first: bytes, last: bytes, limit: int | None) -> Sequence[tuple[bytes, bytes]]:
        """Return the first `limit` items, or all, with `first <= key < last`, sorted, as of one moment.

        Keys sort as `bytes` do in Python. Whatever a `commit` returned before is seen, by `read` as well.
        """

    @abstractmethod
    async def commit(
        self, expected: Mapping[bytes, bytes | None], changes: Mapping[bytes, bytes | None]
    ) -> bool:
        """Make all the changes in one step if all that is expected is there; say whether that was so.

        `None` stands for nothing under the key: to be expected, or to be brought about. Whoever reads sees
        all the changes or none, and so does the backend after a crash. Cancelling may end it either way, but
        not in between.
        """

    # -- life ---------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Mark the store closed and end what follows; a subclass then releases what is its own."""
        await super().aclose()
        for place in list(self._news):
            self._wake(place)

    async def ping(self) -> None:
        """Return when the backend answers."""
        self._begin()
        await self.read([COUNTERS])

    # -- sessions -----------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> Session:
        """Store a new session; return it with revision 1."""
        stored = replace(session, revision=1, labels=session.labels.copy())
        more_expired = await self._purge()
        while True:
            try:
                await self._transact(place_of(stored.id), partial(self._create, stored))
            except StoreFull:
                if not more_expired:
                    raise
                more_expired = await self._purge()
            else:
                return stored

    async def _create(self, record: Session, transaction: Transaction) -> None:
        place = place_of(record.id)
        # In one read, so that all is of one moment.
        await transaction.get(key(b"s", place), key(b"h", place), COUNTERS)
        former = await HeldSession.find(transaction, place)
        if former is not None:
            if former.lives(self.clock()):
                raise SessionExists(f"there is a session {record.id!r} already")
            await former.remove()
        counters = await counters_in(transaction)
        most = self.limits.sessions
        if most is not None and counters.live >= most:
            raise StoreFull(f"the store holds {most} live sessions, as many as StoreLimits.sessions allows")
        await HeldSession.create(transaction, record)

    async def get_session(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent."""
        return (await self.get_sessions_batch([session_id])).get(session_id)

    async def get_sessions_batch(self, session_ids: Iterable[str]) -> dict[str, Session]:
        """Return the live ones among `session_ids`, by id, in one read."""
        self._begin()
        kept = await self._read_kept({place_of(each) for each in session_ids})
        return {each.record.id: each.record for each in kept.values()}

    async def update_session(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored."""
        return await self._change(session.id, lambda found: found.update(session))

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with all that belongs to it; say whether there was one."""
        with suppress(SessionNotFound):
            await self._change(session_id, HeldSession.remove)
            return True
        return False

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        """Let the session live at least until `expires_at`; say whether it lives."""
        with suppress(SessionNotFound):
            await self._change(session_id, lambda found: found.touch(expires_at))
            return True
        return False

    async def count_sessions(self) -> int:
        """Return how many sessions live."""
        while await self._purge():
            pass
        return (await self._transact(b"", counters_in)).live

    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        """Return up to `limit` sessions, oldest first."""
        _check_limit(limit)
        after = 0 if cursor is None else _number_in(cursor)
        self._begin()
        items = await self.scan(key(b"o", after + 1), key(b"o", _MOST), limit + 1)
        places = {name: decode(data, bytes) for name, data in items[:limit]}
        kept = await self._read_kept(places.values())
        found = [
            kept[place].record
            for name, place in places.items()
            # A session created anew under the id is listed in its own place.
            if place in kept and name == key(b"o", kept[place].number)
        ]
        found = [each for each in found if upstream in (None, each.upstream)]
        more = len(items) > limit
        return SessionPage(found, str(int.from_bytes(items[limit - 1][0][1:])) if more else None)

    # -- frames -------------------------------------------------------------------------------------

    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        """Append the frame to its session's tape; return the seq it got, 0 where it was fenced out."""
        (seq,) = await self._add_to(frame.session_id, [frame], keep)
        return seq

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        """Append many, with one commit for each session; return the seq of each, 0 for one not stored."""
        self._begin()
        seqs = [0] * len(frames)
        of_session: dict[str, list[int]] = {}
        for position, frame in enumerate(frames):
            of_session.setdefault(frame.session_id, []).append(position)
        for session_id, positions in of_session.items():
            with suppress(SessionNotFound):
                added = await self._add_to(session_id, [frames[each] for each in positions], keep)
                for position, seq in zip(positions, added, strict=True):
                    seqs[position] = seq
        return seqs

    async def _add_to(self, session_id: str, frames: Sequence[Frame], keep: Window | None) -> list[int]:
        windows = [self._bounds] if keep is None else [self._bounds, keep]
        return await self._change(
            session_id, lambda found: found.add(frames, windows, self.limits.streams, self.clock())
        )

    async def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        """Return the session's frames in seq order; none where the session is absent."""
        if limit is not None:
            _check_limit(limit)
        self._begin()
        frames = await self._scan_frames(session_id, after, limit if stream is None else None)
        if await self._find(session_id) is None:
            return []
        return [frame for frame in frames if stream in (None, frame.stream)][:limit]

    async def _scan_frames(self, session_id: str, after: int, limit: int | None) -> list[Frame]:
        tape = key(b"f", place_of(session_id))
        items = await self.scan(key(tape, after + 1), tape + END, limit)
        return [decode(data, Frame) for _, data in items]

    async def delete_frames(self, session_id: str) -> int:
        """Forget the session's frames; return how many there were. Later ones go on numbering."""
        with suppress(SessionNotFound):
            return await self._change(session_id, HeldSession.drop_frames)
        return 0

    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        """Iterate over the frames after seq `after`, then over each new one as it comes."""
        self._begin()
        followed = await self._find(session_id)
        while followed is not None:
            # Taken before reading, so that no change in between is missed.
            news = self._news.setdefault(place_of(session_id), anyio.Event())
            frames = await self._scan_frames(session_id, after, _PAGE)
            current = await self._find(session_id)
            if current is None or current.number != followed.number:
                return
            for frame in frames:
                after = frame.seq
                if stream in (None, frame.stream):
                    yield frame
            if len(frames) < _PAGE:
                with anyio.move_on_after(self.follow_interval if self.shared else None):
                    await news.wait()
            self._begin()

    # -- streams ------------------------------------------------------------------------------------

    async def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        """Remember the id of the last event seen on the stream."""
        await self._change(
            session_id, lambda found: found.see(stream, event_id, self.limits.streams, self.clock())
        )

    async def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        """Return the id of the last event seen on the stream; `None` where none is known."""
        found = await self._look(session_id)
        return None if found is None else (await found.stream(stream)).event_id

    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        """Become the stream's owner for `lease` seconds from now, or renew one's own lease."""
        return await self._change(
            session_id, lambda found: found.claim(stream, owner, lease, self.limits.streams, self.clock())
        )

    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        """End the claim that has this token; say whether it was still in force."""
        with suppress(SessionNotFound):
            return await self._change(session_id, lambda found: found.release(stream, token, self.clock()))
        return False

    async def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
        found = await self._look(session_id)
        return None if found is None else await found.claim_in_force(stream, self.clock())

    # -- within -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self.is_open:
            raise StoreUnavailable("the store is not open: enter it with `async with store:` or await open()")

    async def _read_kept(self, places: Collection[bytes]) -> dict[bytes, Kept]:
        """Return what is kept of the live sessions in these places."""
        self._begin()
        names = [key(b"s", place) for place in places]
        found: dict[bytes, bytes] = {}
        for start in range(0, len(names), _MOST_KEYS):
            found.update(await self.read(names[start : start + _MOST_KEYS]))
        kept = {name[1:]: decode(data, Kept) for name, data in found.items()}
        now = self.clock()
        return {place: each for place, each in kept.items() if each.record.expires_at > now}

    async def _find(self, session_id: str) -> Kept | None:
        place = place_of(session_id)
        return (await self._read_kept([place])).get(place)

    async def _look(self, session_id: str) -> HeldSession | None:
        """Return the session to read from, where it lives."""
        self._begin()
        found = await HeldSession.find(Transaction(self.read, self.scan), place_of(session_id))
        return found if found is not None and found.lives(self.clock()) else None

    async def _change(self, session_id: str, work: Callable[[HeldSession], Awaitable[T]]) -> T:
        """Do the work on the session in one step.

        Raises:
            SessionNotFound: it is absent.
        """

        place = place_of(session_id)

        async def change(transaction: Transaction) -> T:
            found = await HeldSession.find(transaction, place)
            if found is None or not found.lives(self.clock()):
                raise SessionNotFound(f"there is no session {session_id!r}")
            return await work(found)

        return await self._transact(place, change)

    async def _transact(self, place: bytes, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do the work, again from the start as long as others get in between, and tell those who follow."""
        while True:
            self._begin()
            transaction = Transaction(self.read, self.scan)
            answer = await work(transaction)
            if not transaction.changes:
                return answer
            try:
                if await self.commit(transaction.expected, transaction.changes):
                    return answer
            finally:
                # Also where it was cancelled or lost its connection: the changes may have been made.
                self._wake(place)

    def _wake(self, place: bytes) -> None:
        news = self._news.pop(place, None)
        if news is not None:
            news.set()

    async def _purge(self) -> bool:
        """Clear away some of what has expired; say whether there may be more."""
        self._begin()
        due = await self.scan(expiry_key(0.0), expiry_key(self.clock(), _MOST), _PAGE)
        for _, data in due:
            place = decode(data, bytes)
            await self._transact(place, partial(self._reap, place))
        return len(due) == _PAGE

    async def _reap(self, place: bytes, transaction: Transaction) -> None:
        found = await HeldSession.find(transaction, place)
        if found is not None and found.lives(self.clock()):
            found.index()
        elif found is not None:
            await found.remove()


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit is {limit}: ask for at least 1")


def _number_in(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit()) or int(cursor) >= _MOST:
        raise ValueError(f"{cursor!r} is no cursor of this store: hand back the one of the previous page")
    return int(cursor)
