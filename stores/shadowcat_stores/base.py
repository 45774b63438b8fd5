"""The contract of a session store.

`shadowcat_stores.testing.SessionStoreContract` tests every numbered clause below against any store;
`docs/stores.md` shows how to write one; `shadowcat_stores.keyvalue` has the clauses kept for those who bring
three primitives.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, Self

from shadowcat_stores.errors import SessionConflict, SessionNotFound
from shadowcat_stores.records import (
    GET_STREAM,
    Frame,
    Session,
    SessionPage,
    StoreLimits,
    StreamClaim,
    Window,
)

Clock = Callable[[], float]
"""Seconds since the epoch. Injected, so that tests decide what time it is."""


class SessionStore(ABC):
    """Where MCP sessions and their tapes are kept.

    Every operation is async and atomic by itself: no caller needs to read, change and write back.

    Clauses:

    1. **One winner.** Of concurrent `create_session` calls with one id, one succeeds; the others raise
       `SessionExists` and change nothing.
    2. **Expired is absent.** From `expires_at` on (`clock() >= expires_at`) a session is absent for every
       verb, its id is free, and it no longer counts. A record that has expired when it is created is
       stored like any other, `create_session` returns it, and it is absent at once. A backend's own TTL
       only reclaims space.
    3. **Whole.** What was stored comes back equal: any id or stream of visible ASCII, any bytes, any
       unicode text, numbers of 64 bits. A record handed out is the caller's own: changing its labels
       changes nothing in the store.
    4. **Compare-and-set.** `update_session` raises `SessionConflict` and overwrites nothing unless the
       record's `revision` is the stored one; on success the revision grows by one.
    5. **Delete takes all along**: frames, last event ids, claims and index entries. A session created
       anew under the id starts empty, also where the former one expired.
    6. **In order.** Frames come back in seq order, numbered 1, 2, 3 … without gap or duplicate also under
       concurrent writers; trimming takes from the front and never renumbers.
    7. **Never shorter.** Neither `touch_session` nor `update_session` moves `expires_at` backwards (the
       later one stays), and neither revives a session that is absent.
    8. **Only `StoreError`** subclasses escape, besides `ValueError` for an argument that is wrong whatever
       the store holds.
    9. **Cancelling** a call leaves nothing half written: it took effect or it did not, each item of a
       batch by itself, and the store goes on working.
    10. **Open and close** are idempotent, and a store can be opened again after it was closed. While it
        is not open, every verb raises `StoreUnavailable`; closing does so to those who follow frames. An
        `open` that failed leaves the store closed, one that was cancelled leaves it open or closed, and
        after either it can be opened. A client object passed in by the caller is not closed.
    11. **Shared means shared.** Where `shared` is true, two store objects on one backend see each other's
        changes.
    12. **Bounded.** `StoreLimits` and a call's `Window` hold under any load, whichever is tighter, except
        that the newest frame is always kept; live sessions are never evicted: one too many is `StoreFull`.
        Of streams the one least recently stored or claimed is forgotten first, as if it had never been:
        storing an event id of it and every successful claim count, and so do frames that store one. Never
        forgotten are one whose lease runs and the one at hand, even where the limit is exceeded for it.
    13. **Pages.** `list_sessions` shows every session that lives throughout the listing exactly once,
        in the order in which they were created in the store.
    14. **Last event ids** are kept per stream; storing a frame of the server's with an event id and a
        stream stores that id as the stream's last, in the same step. They outlive the frames; that of a
        forgotten stream (clause 12) is `None`.
    15. **Following** yields the stored frames after the given seq, then each new one, once and in order,
        and ends when the session is deleted or found expired. A reader slower than the trimming goes on
        with the oldest frame still there.
    16. **Ownership.** One owner per stream while its lease runs, who renews it by claiming again, with the
        same token. A claim after the lease is over gets a higher token than any claim in the session
        before it, also for the same owner, and also after a release. A frame whose token is lower than the
        stream's newest is not stored; one without a token, or off a stream, is. Where no claim of the
        stream is known, which may have been forgotten, a token that was given in the session before is not
        good enough either: whoever holds it claims again.
    17. **Batches** answer for each item by itself: one that is absent or in conflict does not hold up the
        others.
    """

    shared: ClassVar[bool] = False
    """Whether other processes see what this store holds."""

    def __init__(self, *, clock: Clock = time.time, limits: StoreLimits | None = None) -> None:
        self.clock = clock
        self.limits = StoreLimits() if limits is None else limits
        self.is_open = False

    # -- life ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the store ready; nothing but this works before. On an open store it does nothing (clause 10).

        Raises:
            StoreUnavailable: the backend cannot be reached or used; the message says what to do. The store is
                closed as before, and `open` may be called again.
            StoreUnusable: it cannot, and trying again does not help.
        """
        self.is_open = True

    async def aclose(self) -> None:
        """Release what `open` took; what was acknowledged is kept. Idempotent (clause 10)."""
        self.is_open = False

    async def ping(self) -> None:
        """Return when the backend answers.

        Raises:
            StoreUnavailable: it does not.
        """
        await self.count_sessions()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- sessions -----------------------------------------------------------------------------------

    @abstractmethod
    async def create_session(self, session: Session) -> Session:
        """Store a new session; return it as stored, with revision 1.

        Raises:
            SessionExists: a live session has this id (clause 1).
            StoreFull: the session limit is reached (clause 12).
        """

    @abstractmethod
    async def get_session(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent."""

    @abstractmethod
    async def update_session(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored (clauses 4, 7).

        Raises:
            SessionNotFound: it is absent.
            SessionConflict: somebody else updated it first; read it again.
        """

    @abstractmethod
    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with all that belongs to it (clause 5); say whether there was one."""

    @abstractmethod
    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        """Let the session live at least until `expires_at` (seconds since the epoch); say whether it lives.

        The revision stays as it is, so a touch never puts an update in conflict (clause 7).
        """

    @abstractmethod
    async def count_sessions(self) -> int:
        """Return how many sessions live."""

    @abstractmethod
    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, upstream: str | None = None
    ) -> SessionPage:
        """Return up to `limit` sessions, oldest first (clause 13).

        A page may be shorter than `limit`, even empty, and still have a cursor: only a page without one
        is the last.

        Args:
            limit: at most this many; at least 1.
            cursor: where the previous page ended.
            upstream: only sessions of this upstream.

        Raises:
            ValueError: `limit` is below 1, or the cursor is not one of this store's.
        """

    async def get_sessions_batch(self, session_ids: Iterable[str]) -> dict[str, Session]:
        """Return the live ones among `session_ids`, by id (clause 17)."""
        found = {each: await self.get_session(each) for each in session_ids}
        return {each: session for each, session in found.items() if session is not None}

    async def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        """Update each as `update_session` does; return those updated, by id (clause 17).

        One that is absent or in conflict is left as it is and is missing in the answer.
        """
        updated: dict[str, Session] = {}
        for session in sessions:
            with suppress(SessionNotFound, SessionConflict):
                updated[session.id] = await self.update_session(session)
        return updated

    # -- frames -------------------------------------------------------------------------------------

    @abstractmethod
    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        """Append the frame to its session's tape; return the seq it got (clauses 6, 12, 14).

        Args:
            frame: its `seq` is ignored.
            keep: trim the tape to this window in the same step.

        Returns:
            The seq; 0 where the frame was fenced out and not stored (clause 16).

        Raises:
            SessionNotFound: its session is absent.
        """

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        """Append many, of any sessions, in the given order; return the seq of each (clause 17).

        The seq is 0 for a frame that was not stored: its session is absent, or it was fenced out. The proxy
        writes its tapes with this verb: a store is fast here if it is fast anywhere.
        """
        seqs = [0] * len(frames)
        for position, frame in enumerate(frames):
            with suppress(SessionNotFound):
                seqs[position] = await self.add_frame(frame, keep=keep)
        return seqs

    @abstractmethod
    async def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        """Return the session's frames in seq order; none where the session is absent.

        Args:
            session_id: whose tape.
            stream: only frames of this stream.
            after: only frames with a higher seq.
            limit: at most this many, the first ones; at least 1.

        Raises:
            ValueError: `limit` is below 1.
        """

    @abstractmethod
    async def delete_frames(self, session_id: str) -> int:
        """Forget the session's frames; return how many there were. Later ones go on numbering (clause 6)."""

    @abstractmethod
    def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        """Iterate over the frames after seq `after`, then over each new one as it comes (clause 15).

        Whoever may stop early closes it: `async with aclosing(store.follow_frames(…)) as frames`.
        """

    # -- streams ------------------------------------------------------------------------------------

    @abstractmethod
    async def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        """Remember the id of the last event seen on the stream (clause 14).

        Raises:
            SessionNotFound: the session is absent.
        """

    @abstractmethod
    async def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        """Return the id of the last event seen on the stream; `None` where none is known."""

    @abstractmethod
    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        """Become the stream's owner for `lease` seconds from now, or renew one's own lease (clause 16).

        Returns:
            The claim; `None` while another owner's lease runs.

        Raises:
            SessionNotFound: the session is absent.
        """

    @abstractmethod
    async def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        """End the claim that has this token; say whether it was still in force."""

    @abstractmethod
    async def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
