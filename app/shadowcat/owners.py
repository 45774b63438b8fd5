"""Which replica reads which stream, told through the store that they share.

A replica shows that it lives by a record of its own in the store, which it touches several times within its
lease. A stream that outlives a moment is claimed by the replica that reads it. Where the record is gone, so
is the replica, and whoever needs one of its streams takes the claim over.

As often it writes to the tape of one record that all have in common. Where nobody else does there is no
other replica, and nobody has to wait for the sake of one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from shadowcat import mail
from shadowcat.mail import Mail, record_id
from shadowcat.turns import Turns
from shadowcat_stores import (
    Frame,
    MessageEnvelope,
    Session,
    SessionExists,
    SessionNotFound,
    SessionStore,
    StoreError,
    StoreFull,
    Window,
)

logger = logging.getLogger("shadowcat.owners")

UPSTREAM: Final = "~replicas"
"""The upstream's name in the records of replicas: no session of a client's has it."""
_CLAIM: Final = 30 * 86_400.0
"""Seconds that a claim holds: what ends it before is its owner's record."""
_BEATS: Final = 4
"""Touches within one lease."""
_ALL: Final = "~replicas"
"""The id of the record that they have in common."""
_KEPT: Final = 86_400.0
"""Seconds that it is kept: somebody makes it anew then."""


class Owners:
    """The streams' owners, as this replica sees them. Where the store is not shared, there is no other."""

    def __init__(self, store: SessionStore, lease: float) -> None:
        self._store = store
        self._lease = lease
        self.id = ""
        """This replica's name while it is known to live; empty while it is not."""
        self._steady_since = math.inf
        """Since when the store has taken every touch (`time.monotonic`)."""
        self._to_release: set[tuple[str, str, int]] = set()
        """Claims that the store did not take back: others would wait for a stream that nobody reads."""
        self._records = 0
        """How many records it has had: the mail of each is numbered anew."""
        self._has_warned = False
        self._presence = Turns(lease)
        self.on_loss: Callable[[], None] = lambda: None
        """Called when others may take this replica for dead, and its streams with it."""
        self.on_mail: Callable[[Mail], None] = lambda mail: None
        """Called with what other replicas tell this one."""

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Be known to live meanwhile."""
        if not self._store.shared:
            yield
            return
        is_other = await self._is_other()
        beating = asyncio.get_running_loop().create_task(self._beat(), name="shadowcat-heartbeat")
        try:
            if is_other:
                # It may take itself to be alone, and notices this one with its next beat.
                await asyncio.sleep(1.5 * self._lease / _BEATS)
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            with suppress(StoreError):
                # Others make the common one anew.
                for each in (self.id, "replicas") if self.id else ():
                    await self._store.delete_session(record_id(each))

    async def _is_other(self) -> bool:
        """Return whether another replica was there a moment ago."""
        since = self._store.clock() - 2 * self._lease / _BEATS
        with suppress(StoreError):
            return any(frame.at > since for frame in await self._store.get_frames(_ALL))
        return False

    def is_alone(self) -> bool:
        """Return whether no other replica is there."""
        return self._presence.is_alone(_ALL)

    async def _beat(self) -> None:
        while True:
            try:
                await self._touch()
            except StoreError as exc:
                self._fails(exc)
            await asyncio.sleep(self._lease / _BEATS)

    def _fails(self, error: StoreError) -> None:
        logger.debug("this replica's record could not be touched: %s", error)
        if not isinstance(error, StoreFull):
            self._steady_since = math.inf
        elif not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the session store has no room for this replica's record, so others take it for dead and "
                "cannot follow its streams: raise the store's max_sessions, or lower session_ttl (%s)",
                error,
            )

    async def _touch(self) -> None:
        for claim in tuple(self._to_release):
            self._to_release.discard(claim)
            await self.release(*claim)
        now = self._store.clock()
        is_known = bool(self.id) and await self._store.touch_session(record_id(self.id), now + self._lease)
        if self._steady_since == math.inf:
            self._steady_since = time.monotonic()
        try:
            if not is_known:
                await self._enter(now)
        finally:
            await self._show(now)

    async def _show(self, now: float) -> None:
        """Tell the other replicas that this one is there, and see whether they are."""
        beat = Frame(session_id=_ALL, direction="client", envelope=MessageEnvelope(b"", "other"), at=now)
        seqs = await self._store.add_frames([beat], keep=Window(frames=1))
        self._presence.wrote([beat], seqs)
        if self.id and not seqs[0]:
            record = Session(id=_ALL, created_at=now, expires_at=now + _KEPT, upstream=UPSTREAM)
            # Where there is no room for it, nobody takes himself to be alone.
            with suppress(SessionExists, StoreFull):
                await self._store.create_session(record)

    async def _enter(self, now: float) -> None:
        name = self.id or secrets.token_urlsafe(12)
        record = Session(id=record_id(name), created_at=now, expires_at=now + self._lease, upstream=UPSTREAM)
        await self._store.create_session(record)
        self._records += 1
        self._has_warned = False
        if self.id:
            logger.warning("this replica was silent for too long: others may take its streams over")
            self.on_loss()
        self.id = name

    async def claim(self, session_id: str, stream: str, lease: float = _CLAIM) -> int | None:
        """Become the stream's owner for as long as this replica lives, `lease` seconds at most.

        Returns:
            The token of the claim; `None` while another replica that lives owns it; 0 where there are no
            others, or this one is not known to live.

        Raises:
            StoreError: as the store does.
        """
        if not self._store.shared or not self.id:
            return 0
        try:
            for _ in range(2):
                claim = await self._store.claim_stream(session_id, stream, owner=self.id, lease=lease)
                if claim is not None:
                    return claim.token
                if await self.other(session_id, stream) is not None:
                    return None
        except SessionNotFound:
            return 0
        return None

    async def other(self, session_id: str, stream: str) -> str | None:
        """Return which other replica that lives owns the stream; end the claim of one that does not.

        Raises:
            StoreError: as the store does.
        """
        if not self._store.shared:
            return None
        claim = await self._store.get_stream_claim(session_id, stream)
        if claim is None or claim.owner == self.id:
            return None
        if await self._store.get_session(record_id(claim.owner)) is not None:
            return claim.owner
        if time.monotonic() - self._steady_since < self._lease:
            return claim.owner  # the store was away, for its owner as well: it gets the time to come back
        await self._store.release_stream(session_id, stream, token=claim.token)
        return None

    async def release(self, session_id: str, stream: str, token: int) -> None:
        """Give the stream up."""
        if token:
            try:
                await self._store.release_stream(session_id, stream, token=token)
            except StoreError:
                self._to_release.add((session_id, stream, token))

    # -- what replicas tell each other ----------------------------------------------------------------------

    async def send(self, replica: str, letter: Mail) -> None:
        """Tell another replica. Whether it hears of it is not known."""
        await mail.send(self._store, replica, letter)

    async def read_mail(self) -> None:
        """Hand on what other replicas tell this one, without end."""
        record = seen = 0
        while self._store.shared:
            if record != self._records:
                record, seen = self._records, 0
            with suppress(StoreError):
                async with aclosing(self._store.follow_frames(record_id(self.id), after=seen)) as frames:
                    async for frame in frames:
                        seen = frame.seq
                        letter = mail.read(frame.envelope.raw)
                        if letter is not None:
                            self.on_mail(letter)
            await asyncio.sleep(self._lease / _BEATS)
