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
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(slots=True, frozen=True)
class SSEBlock:
    """What stands between two blank lines: an event, or only comments and settings such as `retry`."""

    raw: bytes
    """All its bytes, with the blank line that ends it. Empty where it was too large to keep."""
    data: bytes | None = None
    """Its `data` lines joined by LF; `None` where it has none, so that it is no event."""
    event: str | None = None
    id: str | None = None


class SSEFramer:
    """Splits a byte stream into blocks. Joined, their bytes and `pending` are the bytes that were fed.

    A block of more than `limit` bytes is not kept: it comes out with empty `raw` and `data`.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._first = True
        self._skipping = False

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
        while match := _BOUNDARY.search(buffer, max(start, self._searched)):
            end = match.end()
            blocks.append(self._block(bytes(buffer[start:end])))
            start = self._searched = end
        del buffer[:start]
        # A boundary may begin in the last bytes and end in the next chunk.
        self._searched = max(0, len(buffer) - _LONGEST_BOUNDARY)
        if len(buffer) > self._limit:
            self._skipping = True
            del buffer[: self._searched]
            self._searched = 0
        return blocks

    def _block(self, raw: bytes) -> SSEBlock:
        if self._skipping:
            self._skipping = self._first = False
            return SSEBlock(b"", b"")
        if self._first:
            self._first = False
            if raw.startswith(_BOM):
                return _parse(raw, raw[len(_BOM) :])
        return _parse(raw, raw)


def _parse(raw: bytes, text: bytes) -> SSEBlock:
    data: list[bytes] = []
    event = event_id = None
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"id" and b"\0" not in value:
            event_id = value.decode("utf-8", "replace")
        elif name == b"event":
            event = value.decode("utf-8", "replace")
    return SSEBlock(raw, b"\n".join(data) if data else None, event, event_id)
