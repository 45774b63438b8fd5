"""Which replica reads which stream, told through the store that they share.

A replica shows that it lives by a record of its own in the store, which it touches several times within its
lease. A stream that outlives a moment is claimed by the replica that reads it. Where the record is gone, so
is the replica, and whoever needs one of its streams takes the claim over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from shadowcat_stores import Session, SessionNotFound, SessionStore, StoreError

logger = logging.getLogger("shadowcat.owners")

UPSTREAM: Final = "~replicas"
"""The upstream's name in the records of replicas: no session of a client's has it."""
_CLAIM: Final = 30 * 86_400.0
"""Seconds that a claim holds: what ends it before is its owner's record."""
_BEATS: Final = 4
"""Touches within one lease."""


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
        self.on_loss: Callable[[], None] = lambda: None
        """Called when others may take this replica for dead, and its streams with it."""

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Be known to live meanwhile."""
        if not self._store.shared:
            yield
            return
        beating = asyncio.get_running_loop().create_task(self._beat(), name="shadowcat-heartbeat")
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            if self.id:
                with suppress(StoreError):
                    await self._store.delete_session(_record(self.id))

    async def _beat(self) -> None:
        while True:
            try:
                await self._touch()
            except StoreError as exc:
                logger.debug("this replica's record could not be touched: %s", exc)
                self._steady_since = math.inf
            await asyncio.sleep(self._lease / _BEATS)

    async def _touch(self) -> None:
        for claim in tuple(self._to_release):
            self._to_release.discard(claim)
            await self.release(*claim)
        now = self._store.clock()
        is_known = bool(self.id) and await self._store.touch_session(_record(self.id), now + self._lease)
        if self._steady_since == math.inf:
            self._steady_since = time.monotonic()
        if is_known:
            return
        name = self.id or secrets.token_urlsafe(12)
        record = Session(id=_record(name), created_at=now, expires_at=now + self._lease, upstream=UPSTREAM)
        await self._store.create_session(record)
        if self.id:
            logger.warning("this replica was silent for too long: others may take its streams over")
            self.on_loss()
        self.id = name

    async def claim(self, session_id: str, stream: str) -> int | None:
        """Become the stream's owner; return the token of the claim, or `None` while another replica that
        lives owns it. 0 where there are no others.

        Raises:
            StoreError: as the store does.
        """
        if not self._store.shared or not self.id:
            return 0
        try:
            for _ in range(2):
                claim = await self._store.claim_stream(session_id, stream, owner=self.id, lease=_CLAIM)
                if claim is not None:
                    return claim.token
                if await self.other(session_id, stream):
                    return None
        except SessionNotFound:
            return 0
        return None

    async def other(self, session_id: str, stream: str) -> bool:
        """Return whether another replica that lives owns the stream; end the claim of one that does not.

        Raises:
            StoreError: as the store does.
        """
        if not self._store.shared:
            return False
        claim = await self._store.get_stream_claim(session_id, stream)
        if claim is None or claim.owner == self.id:
            return False
        if await self._store.get_session(_record(claim.owner)) is not None:
            return True
        if time.monotonic() - self._steady_since < self._lease:
            return True  # the store was away, for its owner as well: it gets the time to come back
        await self._store.release_stream(session_id, stream, token=claim.token)
        return False

    async def release(self, session_id: str, stream: str, token: int) -> None:
        """Give the stream up."""
        if token:
            try:
                await self._store.release_stream(session_id, stream, token=token)
            except StoreError:
                self._to_release.add((session_id, stream, token))

    # -- those who listen from elsewhere --------------------------------------------------------------------

    async def listen(self, session_id: str, stream: str, seconds: float) -> None:
        """Tell the stream's owner that somebody listens to it through the store."""
        with suppress(StoreError):
            await self._store.claim_stream(session_id, _listeners(stream), owner="listener", lease=seconds)

    async def is_listened_to(self, session_id: str, stream: str) -> bool:
        """Return whether somebody listens to the stream through the store."""
        if not self._store.shared:
            return False
        try:
            return await self._store.get_stream_claim(session_id, _listeners(stream)) is not None
        except StoreError:
            return True  # nothing is ended for not knowing


def _record(name: str) -> str:
    return f"~{name}"


def _listeners(stream: str) -> str:
    return f"{stream}~"
