"""The sessions that traffic without a session is recorded under: one for each upstream and principal.

No client is given one, and no request may name one. Their ids follow from the upstream and the principal, so
that all replicas record under the same. Their records are seen to behind the traffic, when their frames are
written.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from msgspec.structs import replace

from shadowcat.counters import Counters
from shadowcat.principal import Credentials
from shadowcat.settings import Settings
from shadowcat_stores import Frame, Session, SessionExists, SessionStore, StoreFull

logger = logging.getLogger("shadowcat.recorder")

_PREFIX: Final = "~ambient."
_KEPT: Final = 10_000
"""Credentials and sessions that are remembered. Those of whoever is forgotten count as new."""
_TRY_AGAIN: Final = 5.0
"""Seconds until a store that was full is asked again."""


def is_ambient(session_id: str) -> bool:
    """Return whether the id is one of these sessions', which no request may name."""
    return session_id.startswith(_PREFIX)


@dataclass(slots=True)
class _Record:
    session: Session
    due: float = -math.inf
    """When it is to be touched, or made (the store's clock)."""
    is_kept: bool = False
    """Whether the store had it at last."""


class AmbientSessions:
    """Those that this process records under."""

    def __init__(self, store: SessionStore, settings: Settings, counters: Counters) -> None:
        self._store = store
        self._ttl = settings.session_ttl
        self._touch_after = settings.touch_after
        self._counters = counters
        self._key = secrets.token_hex(16)
        self._known: dict[tuple[str, str], str] = {}
        """By upstream and credentials that it has accepted; of these, digests that mean nothing elsewhere."""
        self._records: dict[str, _Record] = {}
        self._is_full = False

    def find(self, upstream: str, credentials: Credentials) -> str | None:
        """Return the id of the session that these credentials' traffic is recorded under.

        `None` where the upstream has not accepted them yet: whoever makes them up would fill the store, or
        another's tape.
        """
        session_id = self._known.get((upstream, credentials.digest(self._key)))
        return session_id if session_id in self._records else None

    def accept(self, upstream: str, credentials: Credentials) -> str:
        """Return that id, now that the upstream has accepted them."""
        principal = credentials.principal(_PREFIX + upstream)
        session_id = _PREFIX + blake2b(f"{upstream}\n{principal}".encode(), digest_size=16).hexdigest()
        if session_id not in self._records:
            _make_room(self._records)
            self._records[session_id] = _Record(
                Session(
                    id=session_id,
                    created_at=0,
                    expires_at=0,
                    upstream=upstream,
                    principal=credentials.principal(session_id),
                )
            )
        _make_room(self._known)
        self._known[upstream, credentials.digest(self._key)] = session_id
        return session_id

    async def prepare(self, frames: Sequence[Frame]) -> None:
        """See to it that the sessions of these frames are in the store, and live on.

        Raises:
            StoreError: the store does not answer. One that is full is no error: these frames get lost.
        """
        if not self._records:
            return
        now = self._store.clock()
        for session_id in self._records.keys() & {frame.session_id for frame in frames}:
            record = self._records[session_id]
            if record.due <= now:
                await self._renew(record, now)

    async def _renew(self, record: _Record, now: float) -> None:
        session = replace(record.session, created_at=now, expires_at=now + self._ttl)
        try:
            if not await self._store.touch_session(session.id, session.expires_at):
                with suppress(SessionExists):  # another replica was faster
                    await self._store.create_session(session)
        except StoreFull as exc:
            record.is_kept = False
            record.due = now + _TRY_AGAIN
            if not self._is_full:
                logger.error("what passes without a session is not recorded for now: %s", exc)
            self._is_full = True
        else:
            record.is_kept = True
            record.due = now + self._touch_after
            self._is_full = False

    def wrote(self, frames: Sequence[Frame], seqs: Sequence[int]) -> None:
        """Take notice of frames that were not stored, since their session was not there."""
        for frame, seq in zip(frames, seqs, strict=True):
            if not seq and (record := self._records.get(frame.session_id)):
                self._counters.frames_dropped += 1
                if record.is_kept:  # somebody has deleted it
                    record.due = -math.inf


def _make_room(table: dict[Any, Any]) -> None:
    if len(table) >= _KEPT:
        del table[next(iter(table))]  # the oldest
