"""Finds the events in a stream of server-sent events, on its bytes and without losing one.

Bytes in, events out, no I/O: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# A line ends with CRLF, LF or CR; a blank line ends the event. The look-ahead keeps a CRLF from being two.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_LONGEST_BOUNDARY: Final = 4
_LONGEST_RETRY: Final = 10
_BOM: Final = b"\xef\xbb\xbf"
_BEFORE_FIELDS: Final = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*")

CONTENT_TYPE: Final = b"text/event-stream"
COMMENT: Final = b":\n\n"
"""What keeps a silent connection alive, and is no event."""


@dataclass(slots=True)  # frozen costs 1 µs an event
class SSEBlock:
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


class SSEFramer:
    """Splits a byte stream into blocks. Joined, their bytes and `pending` are the bytes that were fed.

    A block of more than `limit` bytes is not read: it comes out in parts as it came in.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._first = True
        self.is_in_parts = False
        """Whether parts of a block have come out, and the rest of it has not come in."""

    @property
    def pending(self) -> bytes:
        """The bytes of a block that has not ended yet."""
        return bytes(self._buffer)

    def feed(self, chunk: bytes) -> list[SSEBlock]:
        """Return the blocks that this chunk completes."""
        buffer = self._buffer
        buffer += chunk
        blocks: list[SSEBlock] = []
        start = 0
        if b"\r" not in buffer:  # most servers end lines with LF alone, and finding that costs a tenth
            while (end := buffer.find(b"\n\n", max(start, self._searched)) + 2) > 1:
                blocks.append(self._block(bytes(buffer[start:end])))
                start = self._searched = end
        while match := _BOUNDARY.search(buffer, max(start, self._searched)):
            end = match.end()
            blocks.append(self._block(bytes(buffer[start:end])))
            start = self._searched = end
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


def _parse(raw: bytes, text: bytes) -> SSEBlock:
    if text.startswith(b"data: ") and text.find(b"\n") == len(text) - 2 and b"\r" not in text:
        return SSEBlock(raw, text[6:-2])  # as most servers write it
    data: list[bytes] = []
    event = event_id = retry = None
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id" and b"\0" not in value:
            event_id = value.decode("utf-8", "replace")
        elif name == b"event":
            event = value.decode("utf-8", "replace")
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
