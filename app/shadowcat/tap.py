"""Reads a stream of events along: numbers them, and gives an id to each that has none. It does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from shadowcat.readers import Arrival, messages_of, short
from shadowcat.sse import SSEBlock, SSEFramer, with_id, write_event
from shadowcat.stream_names import minted
from shadowcat_stores import JsonRpcId

_REMEMBERED: Final = 256
"""Ids of the upstream's newest events: a stream that is opened again may begin before its cursor."""


@dataclass(slots=True)
class Taken:
    """What some bytes of the upstream's brought."""

    data: bytes
    """What the client is sent for them."""
    arrivals: list[Arrival] = field(default_factory=list)
    """What the tape gets."""


class EventTap:
    """One stream of events on its way, over one connection to the upstream or several.

    Events go on as they came, an id being added where there is none. An event that is cut by the end of a
    connection is none; one whose id was seen on an earlier connection is left out.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        asked: Iterable[JsonRpcId] = (),
        position: int = 0,
        upstream_id: str | None = None,
        *,
        explicit: bool = False,
    ) -> None:
        """Begin.

        Args:
            name: of the stream, for the ids that are made here.
            limit: bytes of an event that is read; a larger one passes unread.
            asked: the ids of the requests that the stream is to answer; `None` is one that nobody knows.
            position: how many events the stream has had.
            upstream_id: the newest id that the upstream has given on it.
            explicit: put ids that are made here on the tape, since `name` is not the stream's name there.
        """
        self.name = name
        self.position = position
        self.unanswered = set(asked)
        self.last_id: str | None = None
        """The id of the newest event."""
        self.upstream_id = upstream_id
        """The newest id that the upstream gave."""
        self.has_unread = False
        """Whether an event was too large to be read: it may have been the answer."""
        self.retry: int | None = None
        """Milliseconds that the upstream asks to wait before connecting again."""
        self._limit = limit
        self._explicit = explicit
        self._framer = SSEFramer(limit)
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._earlier: frozenset[str] = frozenset()

    @property
    def newest(self) -> tuple[int, str | None]:
        """The number of the newest event and its id."""
        return self.position, self.last_id

    @property
    def is_inside_event(self) -> bool:
        """Whether a part of an event has been passed on, and the rest of it has not come."""
        return self._framer.is_in_parts

    def feed(self, chunk: bytes) -> Taken:
        """Return what this chunk completes."""
        taken = Taken(b"")
        parts = [self._pass(block, taken.arrivals) for block in self._framer.feed(chunk)]
        taken.data = parts[0] if len(parts) == 1 else b"".join(parts)
        return taken

    def reconnect(self) -> None:
        """Forget the event that was cut: the upstream is connected anew."""
        self._framer = SSEFramer(self._limit)
        self._earlier = frozenset(self._seen)

    def add(self, message: bytes) -> Taken:
        """Return an event of our own, which has the next number."""
        arrivals: list[Arrival] = []
        return Taken(self._pass(SSEBlock(write_event(message), message), arrivals), arrivals)

    def _pass(self, block: SSEBlock, arrivals: list[Arrival]) -> bytes:
        if block.retry is not None:
            self.retry = block.retry
        given = short(block.id) or None
        if given is not None:
            if given in self._earlier:
                return b""
            self.upstream_id = given
            self._seen.append(given)
        if block.data is None and not block.unread:
            return block.raw
        self.position += 1
        self.has_unread |= block.unread
        own = minted(self.name, self.position)
        self.last_id = given or own
        messages = messages_of(block)
        for each in messages:
            if each.kind in ("response", "error"):
                self.unanswered -= {each.id, None}
        event_id = self.last_id if self._explicit else given
        arrivals.append(Arrival(messages, self.position, short(block.event), event_id))
        return block.raw if block.id or block.unread else with_id(block.raw, own)
