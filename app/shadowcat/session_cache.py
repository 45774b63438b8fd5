"""Session records of busy clients, so that not every request asks a store on the other end of a wire."""

from __future__ import annotations

import time
from typing import Final

from msgspec.structs import replace

from shadowcat_stores import Clock, Session, SessionStore

_KEPT: Final = 10_000


class SessionCache:
    """Reads sessions from the store, at most once in `seconds` each.

    That is the bound on staleness: a session deleted or changed by another replica is seen as it was for at
    most so long. What this process changes it sees at once. A store within this process is always asked.
    """

    def __init__(self, store: SessionStore, seconds: float, monotonic: Clock = time.monotonic) -> None:
        self._store = store
        self._seconds = seconds if store.shared else 0.0
        self._monotonic = monotonic
        self._read: dict[str, tuple[float, Session]] = {}

    def known(self, session_id: str) -> Session | None:
        """Return the session if it was read lately."""
        found = self._read.get(session_id)
        if found is None:
            return None
        read_at, session = found
        if self._monotonic() - read_at < self._seconds and self._store.clock() < session.expires_at:
            return session
        del self._read[session_id]
        return None

    async def get(self, session_id: str) -> Session | None:
        """Return the session, or `None` where it is absent. An absent one is looked for again each time.

        Raises:
            StoreError: as the store does.
        """
        return self.known(session_id) or await self.read(session_id)

    async def read(self, session_id: str) -> Session | None:
        """Return the session as the store has it now.

        Raises:
            StoreError: as the store does.
        """
        session = await self._store.get_session(session_id)
        if session is not None:
            self.put(session)
        return session

    def put(self, session: Session) -> None:
        """Remember the session as it now is in the store."""
        if not self._seconds:
            return
        if len(self._read) >= _KEPT:
            # The oldest entries first: a dict keeps the order of insertion, and each read inserts anew.
            del self._read[next(iter(self._read))]
        self._read.pop(session.id, None)
        self._read[session.id] = (self._monotonic(), session)

    def prolong(self, session_id: str, expires_at: float) -> None:
        """Remember that the session lives on until then. What else is known of it gets no younger."""
        if found := self._read.get(session_id):
            read_at, session = found
            self._read[session_id] = (read_at, replace(session, expires_at=expires_at))

    def discard(self, session_id: str) -> None:
        """Forget the session: it has ended."""
        self._read.pop(session_id, None)
