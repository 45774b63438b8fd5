"""Reads a stream of events along: numbers them, and gives an id to each that has none. It does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from shadowcat.envelope import read_server_messages
from shadowcat.readers import Arrival, Notice, may_matter, messages_of, short
from shadowcat.sse import SSEBlock, SSEFramer, SSERun, SSEShape, with_id, write_event
from shadowcat.stream_names import minted
from shadowcat_stores import JsonRpcId, MessageEnvelope

_REMEMBERED: Final = 256
"""Ids of the upstream's newest events: a stream that is opened again may begin before its cursor."""
_NONE: Final[frozenset[str]] = frozenset()


class Taken(msgspec.Struct):
    """What some bytes of the upstream's brought."""

    data: bytes
    """What the client is sent for them."""
    arrivals: list[Arrival | Notice]
    """What the tape gets."""


class EventTap:
    """One stream of events on its way, over one connection to the upstream or several.

    Events go on as they came, an id being added where there is none. An event that is cut by the end of a
    connection is none; one whose id was seen on an earlier connection is left out.
    """

    __slots__ = (
        "_earlier", "_explicit", "_framer", "_limit", "_seen", "has_unread", "last_id", "name", "position",
        "retry", "unanswered", "upstream_id",
    )  # fmt: skip

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
        self._seen: deque[str] | None = None
        """The upstream's newest ids, where it gives any."""
        self._earlier = _NONE

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
        run = self._framer.feed_run(chunk)
        if run is not None:
            return self._pass_run(run)
        arrivals: list[Arrival | Notice] = []
        parts = [self._pass(block, arrivals) for block in self._framer.feed(chunk)]
        return Taken(parts[0] if len(parts) == 1 else b"".join(parts), arrivals)

    def reconnect(self) -> None:
        """Forget the event that was cut: the upstream is connected anew."""
        self._framer = SSEFramer(self._limit)
        self._earlier = frozenset(self._seen or ())

    def add(self, message: bytes) -> Taken:
        """Return an event of our own, which has the next number."""
        arrivals: list[Arrival | Notice] = []
        return Taken(self._pass(SSEBlock(write_event(message), message), arrivals), arrivals)

    def _pass_run(self, run: SSERun) -> Taken:
        shape = run.shape
        if len(run.data) == 1:
            return self._pass_one(shape, run.data[0])
        number = self.position
        before = b"id: %b-%%d\n%b" % (self.name.encode(), shape.before.replace(b"%", b"%%"))
        event, after = short(shape.event), shape.after
        parts: list[bytes] = []
        arrivals: list[Arrival | Notice] = []
        has_news = may_matter(after.join(run.data))
        for data in run.data:
            number += 1
            parts += (before % number, data, after)
            event_id = minted(self.name, number) if self._explicit else None
            if has_news and may_matter(data):
                arrivals.append(self._read(data, number, event, event_id))
            else:
                arrivals.append(Notice(data, number, event, event_id))
        self.position = number
        self.last_id = minted(self.name, number)
        return Taken(b"".join(parts), arrivals)

    def _pass_one(self, shape: SSEShape, data: bytes) -> Taken:
        self.position = number = self.position + 1
        self.last_id = own = minted(self.name, number)
        event_id = own if self._explicit else None
        read = self._read if may_matter(data) else Notice
        arrival = read(data, number, short(shape.event), event_id)
        return Taken(b"id: %b\n%b%b%b" % (own.encode(), shape.before, data, shape.after), [arrival])

    def _read(self, data: bytes, number: int, event: str | None, event_id: str | None) -> Arrival:
        messages = read_server_messages(data)
        self._take_answers(messages)
        return Arrival(messages, number, event, event_id)

    def _pass(self, block: SSEBlock, arrivals: list[Arrival | Notice]) -> bytes:
        if block.retry is not None:
            self.retry = block.retry
        given = short(block.id) or None
        if given is not None:
            if given in self._earlier:
                return b""
            self.upstream_id = given
            if self._seen is None:
                self._seen = deque(maxlen=_REMEMBERED)
            self._seen.append(given)
        if block.data is None and not block.unread:
            return block.raw
        self.position += 1
        self.has_unread |= block.unread
        self.last_id = given or minted(self.name, self.position)
        messages = messages_of(block)
        self._take_answers(messages)
        event_id = self.last_id if self._explicit else given
        arrivals.append(Arrival(messages, self.position, short(block.event), event_id))
        if block.id or block.unread:
            return block.raw
        return with_id(block.raw, minted(self.name, self.position))

    def _take_answers(self, messages: list[MessageEnvelope]) -> None:
        for each in messages:
            if each.kind in ("response", "error"):
                self.unanswered -= {each.id, None}
