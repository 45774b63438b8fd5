"""A store as simple as can be: slow, synchronous, plain lists and dicts. What the real ones must equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from shadowcat_stores.errors import SessionConflict, SessionExists, SessionNotFound, StoreError, StoreFull
from shadowcat_stores.records import GET_STREAM, Frame, Session, StoreLimits, StreamClaim, Window
from shadowcat_stores.testing.clock import FakeClock


class _Kept:
    def __init__(self, record: Session) -> None:
        self.record = record
        self.seq = 0
        self.frames: list[Frame] = []
        self.last_event_ids: dict[str, str] = {}
        self.claims: dict[str, StreamClaim] = {}
        self.tokens = 0
        self.used: list[str] = []

    def use(self, stream: str, most: int | None, now: float) -> None:
        self.used = [each for each in self.used if each != stream] + [stream]
        for each in self.used[:-1]:
            leased = each in self.claims and self.claims[each].expires_at > now
            if most is not None and len(self.used) > most and not leased:
                self.used.remove(each)
                self.last_event_ids.pop(each, None)
                self.claims.pop(each, None)

    def is_fenced_out(self, frame: Frame) -> bool:
        if frame.stream is None or frame.token == 0:
            return False
        claim = self.claims.get(frame.stream)
        return frame.token <= self.tokens if claim is None else frame.token < claim.token


class StoreModel:
    """Answers every verb of `SessionStore` as the contract says, without `async`."""

    def __init__(self, clock: FakeClock, limits: StoreLimits) -> None:
        self.clock = clock
        self.limits = limits
        self._all: dict[str, _Kept] = {}

    def _live(self) -> dict[str, _Kept]:
        now = self.clock()
        self._all = {each: kept for each, kept in self._all.items() if kept.record.expires_at > now}
        return self._all

    def _require(self, session_id: str) -> _Kept:
        kept = self._live().get(session_id)
        if kept is None:
            raise SessionNotFound
        return kept

    def create_session(self, session: Session) -> Session:
        live = self._live()
        if session.id in live:
            raise SessionExists
        if self.limits.sessions is not None and len(live) >= self.limits.sessions:
            raise StoreFull
        live[session.id] = _Kept(replace(session, revision=1))
        return live[session.id].record

    def get_session(self, session_id: str) -> Session | None:
        kept = self._live().get(session_id)
        return None if kept is None else kept.record

    def update_session(self, session: Session) -> Session:
        kept = self._require(session.id)
        if session.revision != kept.record.revision:
            raise SessionConflict
        later = max(session.expires_at, kept.record.expires_at)
        kept.record = replace(session, revision=session.revision + 1, expires_at=later)
        return kept.record

    def delete_session(self, session_id: str) -> bool:
        return self._live().pop(session_id, None) is not None

    def touch_session(self, session_id: str, expires_at: float) -> bool:
        kept = self._live().get(session_id)
        if kept is not None:
            kept.record = replace(kept.record, expires_at=max(expires_at, kept.record.expires_at))
        return kept is not None

    def count_sessions(self) -> int:
        return len(self._live())

    def all_sessions(self, upstream: str | None = None) -> list[Session]:
        records = [kept.record for kept in self._live().values()]
        return [record for record in records if upstream in (None, record.upstream)]

    def get_sessions_batch(self, session_ids: Iterable[str]) -> dict[str, Session]:
        return {each: kept.record for each, kept in self._live().items() if each in set(session_ids)}

    def update_sessions_batch(self, sessions: Iterable[Session]) -> dict[str, Session]:
        updated = {}
        for session in sessions:
            try:
                updated[session.id] = self.update_session(session)
            except StoreError:
                continue
        return updated

    def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        kept = self._require(frame.session_id)
        if kept.is_fenced_out(frame):
            return 0
        kept.seq += 1
        kept.frames.append(replace(frame, seq=kept.seq))
        if frame.direction == "server" and frame.stream is not None and frame.event_id is not None:
            self.store_last_event_id(frame.session_id, frame.event_id, stream=frame.stream)
        for window in (Window(frames=self.limits.frames, bytes=self.limits.frame_bytes), keep or Window()):
            while len(kept.frames) > 1 and not _fits(kept.frames, window):
                del kept.frames[0]
        return kept.seq

    def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        return [
            self.add_frame(frame, keep=keep) if frame.session_id in self._live() else 0 for frame in frames
        ]

    def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        kept = self._live().get(session_id)
        frames = [] if kept is None else [frame for frame in kept.frames if frame.seq > after]
        return [frame for frame in frames if stream in (None, frame.stream)][:limit]

    def delete_frames(self, session_id: str) -> int:
        kept = self._live().get(session_id)
        if kept is None:
            return 0
        count, kept.frames = len(kept.frames), []
        return count

    def store_last_event_id(self, session_id: str, event_id: str, *, stream: str = GET_STREAM) -> None:
        kept = self._require(session_id)
        kept.last_event_ids[stream] = event_id
        kept.use(stream, self.limits.streams, self.clock())

    def get_last_event_id(self, session_id: str, *, stream: str = GET_STREAM) -> str | None:
        kept = self._live().get(session_id)
        return None if kept is None else kept.last_event_ids.get(stream)

    def claim_stream(self, session_id: str, stream: str, *, owner: str, lease: float) -> StreamClaim | None:
        kept = self._require(session_id)
        now = self.clock()
        newest = self.get_stream_claim(session_id, stream)
        if newest is None:
            kept.tokens += 1
            newest = StreamClaim(owner=owner, token=kept.tokens, expires_at=now)
        if newest.owner != owner:
            return None
        kept.claims[stream] = replace(newest, expires_at=now + lease)
        kept.use(stream, self.limits.streams, now)
        return kept.claims[stream]

    def release_stream(self, session_id: str, stream: str, *, token: int) -> bool:
        claim = self.get_stream_claim(session_id, stream)
        if claim is None or claim.token != token:
            return False
        self._require(session_id).claims[stream] = replace(claim, expires_at=self.clock())
        return True

    def get_stream_claim(self, session_id: str, stream: str) -> StreamClaim | None:
        kept = self._live().get(session_id)
        claim = None if kept is None else kept.claims.get(stream)
        return None if claim is None or claim.expires_at <= self.clock() else claim


def _fits(frames: list[Frame], window: Window) -> bool:
    return (window.frames is None or len(frames) <= window.frames) and (
        window.bytes is None or sum(len(frame.envelope.raw) for frame in frames) <= window.bytes
    )
