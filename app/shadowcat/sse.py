"""Finds the events in a stream of server-sent events, on its bytes and without losing one.

Bytes in, events out, no I/O: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

# A line ends with CRLF, LF or CR; a blank line ends the event. The look-ahead keeps a CRLF from being two.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LONGEST_BOUNDARY: Final = 4
_LONGEST_RETRY: Final = 10
_BRACE: Final = ord("{")
_BOM: Final = b"\xef\xbb\xbf"
_BEFORE_FIELDS: Final = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*")
# What stands before an event's data as most servers write it: as a rule one line, read in one step.
_BEFORE_DATA: Final = re.compile(
    rb"(?:id: ?([^\0\r\n]*)\r?\n)?(?:event: ?([^\r\n]*)\r?\n)?(?:id: ?([^\0\r\n]*)\r?\n)?data: ?"
)
_BEFORE_RUN: Final = re.compile(rb"(?:event: ?([^\r\n]*)\r?\n)?data: ?(?=\{)")

CONTENT_TYPE: Final = b"text/event-stream"
COMMENT: Final = b":\n\n"
"""What keeps a silent connection alive, and is no event."""


class SSEBlock(msgspec.Struct):
    """What stands between two blank lines: an event, or only comments and settings such as `retry`."""

    raw: bytes
    """All its bytes, with the blank line that ends it."""
    data: bytes | None = None
    """Its `data` lines joined by LF; `None` where it has none, so that it is no event."""
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    """Milliseconds to wait before connecting again."""
    unread: bool = False
    """Whether it is the end of an event that was too large to be read; the parts before it came alone."""


class SSEShape(msgspec.Struct, frozen=True):
    """What events have in common that differ in their data alone."""

    before: bytes
    """All that stands before the data."""
    after: bytes
    event: str | None
    line_feeds: int
    """Of one event."""
    carriages: int


class SSERun(msgspec.Struct):
    """Events in a row that differ in their data alone: each a JSON object on one line, without an id."""

    shape: SSEShape
    data: list[bytes]


class SSEFramer:
    """Splits a byte stream into blocks. Joined, their bytes and `pending` are the bytes that were fed.

    A block of more than `limit` bytes is not read: it comes out in parts as it came in.
    """

    __slots__ = ("_buffer", "_first", "_limit", "_searched", "_shape", "is_in_parts")

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._first = True
        self._shape: SSEShape | None = None
        """Of the events of late: a stream's are alike as a rule."""
        self.is_in_parts = False
        """Whether parts of a block have come out, and the rest of it has not come in."""

    @property
    def pending(self) -> bytes:
        """The bytes of a block that has not ended yet."""
        return bytes(self._buffer)

    def feed_run(self, chunk: bytes) -> SSERun | None:
        """Return the events that this chunk completes, where they are a run; `None`, and take nothing, where
        they are none. Many come at once when much comes, and each for itself costs ten times as much."""
        buffer, shape = self._buffer, self._shape
        if shape is not None and not buffer and _is_one(chunk, shape):
            return SSERun(shape, [chunk[len(shape.before) : -len(shape.after)]])
        if self.is_in_parts or len(buffer) > len(chunk):
            return None
        text = bytes(buffer) + chunk if buffer else chunk
        before = _BEFORE_RUN.match(text)
        blank = _blank_line(text) if before else None
        if before is None or blank is None or (last := text.rfind(blank)) < 0:
            return None
        shape = _shape_of(before[0], before[1], blank)
        end = last + len(blank)
        between = blank + shape.before
        events = text[len(shape.before) : last].split(between)
        # No more lines than these, so none within the data.
        is_run = text.count(b"\n", 0, end) == shape.line_feeds * len(events)
        if (
            not is_run
            or text.count(between + b"{", 0, end) != len(events) - 1
            or len(text) - end > self._limit
        ):
            return None
        self._first = False
        self._shape = shape
        if buffer or end < len(text):
            buffer[:] = text[end:]
            self._searched = max(0, len(buffer) - _LONGEST_BOUNDARY)
        return SSERun(shape, events)

    def feed(self, chunk: bytes) -> list[SSEBlock]:
        """Return the blocks that this chunk completes."""
        buffer = self._buffer
        text: bytes | bytearray = chunk
        if buffer:
            buffer += chunk
            text = buffer
        blocks: list[SSEBlock] = []
        start, at = 0, self._searched
        if blank := _blank_line(text[at:]):
            while (found := text.find(blank, at)) >= 0:
                at = found + len(blank)
                blocks.append(self._block(bytes(text[start:at])))
                start = at
        else:
            while match := _BOUNDARY.search(text, at):
                at = match.end()
                blocks.append(self._block(bytes(text[start:at])))
                start = at
        if text is chunk:
            buffer += text[start:]
        else:
            del buffer[:start]
        # A boundary may begin in the last bytes and end in the next chunk.
        self._searched = max(0, len(buffer) - _LONGEST_BOUNDARY)
        if len(buffer) > self._limit:
            self.is_in_parts = True
            blocks.append(SSEBlock(bytes(buffer[: self._searched])))
            del buffer[: self._searched]
            self._searched = 0
        return blocks

    def _block(self, raw: bytes) -> SSEBlock:
        first, self._first = self._first, False
        if self.is_in_parts:
            self.is_in_parts = False
            return SSEBlock(raw, unread=True)
        if first and raw.startswith(_BOM):
            return _parse(raw, raw[len(_BOM) :])
        return _parse(raw, raw)


@lru_cache(64)
def _shape_of(before: bytes, event: bytes | None, blank: bytes) -> SSEShape:
    line_feeds = before.count(b"\n") + 2
    return SSEShape(before, blank, _text(event), line_feeds, line_feeds if b"\r" in blank else 0)


def _is_one(chunk: bytes, shape: SSEShape) -> bool:
    """Return whether the chunk is one event of this shape, and nothing else."""
    return (
        chunk.startswith(shape.before)
        and chunk.endswith(shape.after)
        and chunk[len(shape.before)] == _BRACE
        and chunk.count(b"\n") == shape.line_feeds
        and chunk.count(b"\r") == shape.carriages
    )


def _blank_line(text: bytes | bytearray) -> bytes | None:
    """Return how a line and a blank one after it end; `None` where the lines do not all end alike, with LF or
    with CRLF. Servers' do, and to find two bytes costs a tenth of finding a pattern."""
    carriages = text.count(b"\r")
    if not carriages:
        return b"\n\n"
    return b"\r\n\r\n" if carriages == text.count(b"\n") == text.count(b"\r\n") else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _parse(raw: bytes, text: bytes) -> SSEBlock:
    if before := _BEFORE_DATA.match(text):
        end = text.find(b"\n", before.end())
        value = text[before.end() : end].removesuffix(b"\r")
        if text[end:] in (b"\n\n", b"\n\r\n") and b"\r" not in value:
            return SSEBlock(
                raw, value, _text(before[2]), _text(before[1] if before[3] is None else before[3])
            )
    data: list[bytes] = []
    event = event_id = retry = None
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id" and b"\0" not in value:
            event_id = _text(value)
        elif name == b"event":
            event = _text(value)
        elif name == b"retry" and value.isdigit() and len(value) < _LONGEST_RETRY:
            retry = int(value)
    return SSEBlock(raw, b"\n".join(data) if data else None, event, event_id, retry)


def with_id(raw: bytes, event_id: str) -> bytes:
    """Return the bytes of an event that has no id, with this one."""
    if raw[0] not in b"\xef\r\n":
        return b"id: %b\n%b" % (event_id.encode(), raw)
    at = _BEFORE_FIELDS.match(raw).end()  # type: ignore[union-attr]  # it matches everything
    return b"%bid: %b\n%b" % (raw[:at], event_id.encode(), raw[at:])


def with_data(raw: bytes, data: bytes) -> bytes:
    """Return the bytes of an event that has one line of data, with this one for it; the rest stays."""
    bom = _BOM if raw.startswith(_BOM) else b""
    lines = raw[len(bom) :].splitlines(keepends=True)
    for place, line in enumerate(lines):
        text = line.rstrip(b"\r\n")
        if text.partition(b":")[0] == b"data":
            lines[place] = b"data: " + data + line[len(text) :]
    return bom + b"".join(lines)


def write_event(data: bytes, event_id: str | None = None, event: str | None = None) -> bytes:
    """Return the bytes of an event."""
    lines = [] if event_id is None else [b"id: " + event_id.encode()]
    if event is not None:
        lines.append(b"event: " + event.encode())
    lines += [b"data: " + line for line in data.split(b"\n")]
    return b"\n".join((*lines, b"", b""))


def write_retry(milliseconds: int) -> bytes:
    """Return the bytes that tell a client when to connect again."""
    return b"retry: %d\n\n" % milliseconds
