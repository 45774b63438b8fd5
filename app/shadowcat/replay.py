"""What the tape still has for a client that comes back, and its place in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from shadowcat.protocol import MARK
from shadowcat.sse import write_event
from shadowcat.stream_names import asked_by, minted, read_minted
from shadowcat_stores import GET_STREAM, Frame, JsonRpcId, SessionStore


@dataclass(slots=True)
class Cursor:
    """A client's place in one stream of its session."""

    stream: str
    seq: int = 0
    """The newest frame that the client has."""
    begun: int = 0
    """The stream's first frame that the tape still has."""
    position: int = 0
    """Which event of the stream that is."""
    event_id: str | None = None
    """Its id; `None` before the first event."""
    upstream_id: str | None = None
    """The newest id that the upstream gave on the stream."""
    asked: set[JsonRpcId] = field(default_factory=set)
    """The requests that the stream is to answer, where the tape still has them."""
    answered: set[JsonRpcId] = field(default_factory=set)
    had: int = 0
    """The number of the event that the client came back with: it has this one and all before it, also where
    the replica that sent them has yet to write them."""
    has_gap: bool = False
    """Whether the tape could not take all of it: something is missing before this place."""

    @property
    def unanswered(self) -> set[JsonRpcId]:
        """The requests that have no answer yet; `None` stands for those that nobody knows any more."""
        if self.stream == GET_STREAM:
            return set()
        if self.asked:
            return self.asked - self.answered
        return set() if self.answered else {asked_by(self.stream)}

    @property
    def is_done(self) -> bool:
        """Whether the stream has nothing more to bring."""
        return self.stream != GET_STREAM and not self.unanswered

    def has(self, newest: tuple[int, str | None]) -> bool:
        """Return whether the client has this event, given by number and id, and all before it."""
        position, event_id = newest
        if event_id in (None, self.event_id):
            return True
        # The numbers of GET streams begin anew with each.
        return self.stream != GET_STREAM and self.position >= position

    def advance(self, frames: Sequence[Frame]) -> Iterator[bytes]:
        """Move on by these frames of the stream; iterate over their events, as the client gets them."""
        for _, group in groupby(frames, key=lambda frame: (frame.direction, _event_id(frame))):
            event = list(group)
            self._pass(event)
            if self.has_gap:
                return
            if event[0].direction == "server" and event[0].position > self.had:
                yield _bytes(event)

    def skip(self, frames: Sequence[Frame]) -> None:
        """Move on by frames that the client has."""
        for frame in frames:
            self._pass([frame])
        self.has_gap = False

    def _pass(self, event: Sequence[Frame]) -> None:
        for frame in event:
            self.seq = frame.seq
            self.begun = self.begun or frame.seq
            if frame.direction == "client":
                if frame.envelope.kind == "request":
                    self.asked.add(frame.envelope.id)
                continue
            if frame.envelope.kind in ("response", "error"):
                self.answered.add(frame.envelope.id)
            self.has_gap |= frame.envelope.kind == "gap" or 0 < self.position < frame.position - 1
            self.position = max(self.position, frame.position)
            self.event_id = _event_id(frame)
            self.upstream_id = frame.event_id or self.upstream_id


async def find_cursor(store: SessionStore, session_id: str, event_id: str) -> Cursor | None:
    """Return the place after the event of this id; `None` where the session's tape does not know it.

    Raises:
        StoreError: as the store does.
    """
    own = read_minted(event_id)
    # What is on a GET stream has the ids that are made there written down.
    if own is not None and own[0].startswith("s."):
        frames = await store.get_frames(session_id, stream=own[0])
        if frames:
            return _after_position(*own, frames)
    frames = await store.get_frames(session_id)
    places = [place for place, frame in enumerate(frames) if frame.event_id == event_id]
    if not places:
        return None
    last = frames[places[-1]]
    if last.stream is None or last.direction != "server":
        return None
    cursor = Cursor(last.stream)
    cursor.skip([frame for frame in frames[: places[-1] + 1] if frame.stream == last.stream])
    return cursor


async def open_streams(store: SessionStore, session_id: str) -> list[Cursor]:
    """Return the end of each stream whose answer the tape does not have.

    Raises:
        StoreError: as the store does.
    """
    streams: dict[str, Cursor] = {}
    for frame in await store.get_frames(session_id):
        if frame.stream is not None:
            streams.setdefault(frame.stream, Cursor(frame.stream)).skip([frame])
        elif frame.direction == "server" and frame.envelope.kind in ("response", "error"):  # a plain body
            for cursor in streams.values():
                cursor.answered.add(frame.envelope.id)
    return [cursor for cursor in streams.values() if cursor.unanswered]


def _after_position(name: str, position: int, frames: Sequence[Frame]) -> Cursor | None:
    """Return the place after the stream's event of this number; `None` where the one after it is gone."""
    cursor = Cursor(name)
    cursor.skip([frame for frame in frames if frame.position <= position])
    later = min((frame.position for frame in frames if frame.position > position), default=position + 1)
    if later > position + 1:
        return None
    # The newest events may have got lost with the process that sent them: the client has them all the same.
    cursor.position = max(cursor.position, position)
    cursor.had = position
    return cursor


def _event_id(frame: Frame) -> str | None:
    if frame.direction == "client" or frame.stream is None:
        return None
    return frame.event_id or minted(frame.stream, frame.position)


def _bytes(event: Sequence[Frame]) -> bytes:
    first = event[0]
    raws = [frame.envelope.raw for frame in event]
    data = raws[0] if len(raws) == 1 else b"[" + b",".join(raws) + b"]"
    return write_event(data, _event_id(first), first.event)


async def was_begun_anew(store: SessionStore, session_id: str, since: int) -> bool:
    """Return whether the upstream has begun the session anew since this frame: ids of before mean nothing.

    Raises:
        StoreError: as the store does.
    """
    return any(frame.envelope.raw == MARK for frame in await store.get_frames(session_id, after=since))
