"""Reads a response along while its bytes pass: which messages it carries. The bytes stay as they are."""

from __future__ import annotations

import zlib
from typing import Final, Protocol

import msgspec

from shadowcat.envelope import read_server_messages
from shadowcat.sse import SSEBlock, SSEFramer
from shadowcat.upstream import Media, UpstreamResponse
from shadowcat_stores import MessageEnvelope

LONGEST_ID: Final = 1024
"""Characters of an event id or type in the tape; the bounds of tapes count the messages only."""


class Arrival(msgspec.Struct):
    """Messages that arrived together: an SSE event's, or a plain body's."""

    messages: list[MessageEnvelope]
    position: int = 0
    """Which event of its stream: 1, 2, 3 …; 0 for a plain body."""
    event: str | None = None
    event_id: str | None = None


class Notice(msgspec.Struct):
    """An event with a single message, which is neither a request nor an answer. It is read when it is written
    to the tape: of a flood, most of it would be out of the window by then."""

    raw: bytes
    position: int
    event: str | None
    event_id: str | None

    @property
    def message(self) -> MessageEnvelope:
        """What it says."""
        (message,) = read_server_messages(self.raw)
        return message


_TELLING: Final = (b'"id"', b'"result"', b'"error"', b"\\u")
"""What a request or an answer has in it: a member of that name, or one whose name is written in escapes."""


def may_matter(data: bytes) -> bool:
    """Return whether there may be a request or an answer in the data of one event or several."""
    for telling in _TELLING:  # noqa: SIM110 - a generator costs more than the search
        if telling in data:
            return True
    return False


class Reader(Protocol):
    """Takes the chunks of one body, and says what arrived with each."""

    def feed(self, chunk: bytes) -> list[Arrival]:
        """Return what this chunk completes."""

    def end(self) -> list[Arrival]:
        """Return what the body's end completes."""


UNREAD: Final = MessageEnvelope(b'{"dropped":1}', "gap")
"""What the tape has for an event that was too large to be read."""


class SSEReader:
    """Reads a stream of server-sent events. An event not completed is none, so `end` adds nothing."""

    def __init__(self, limit: int) -> None:
        self._framer = SSEFramer(limit)
        self._position = 0

    def feed(self, chunk: bytes) -> list[Arrival]:
        """Return the events this chunk completes."""
        return [
            self._arrival(block)
            for block in self._framer.feed(chunk)
            if block.data is not None or block.unread
        ]

    def end(self) -> list[Arrival]:
        """Return nothing."""
        return []

    def add(self, message: bytes) -> Arrival:
        """Return an event that the proxy adds to the stream."""
        return self._arrival(SSEBlock(b"", message))

    def _arrival(self, block: SSEBlock) -> Arrival:
        self._position += 1
        return Arrival(messages_of(block), self._position, short(block.event), short(block.id))


def messages_of(block: SSEBlock) -> list[MessageEnvelope]:
    """Return the messages in an event."""
    if block.unread:
        return [UNREAD]
    # An event without data carries an id only (priming, since revision 2025-11-25): kept as it came.
    return read_server_messages(block.data) if block.data else [MessageEnvelope(b"", "other")]


def short(text: str | None) -> str | None:
    """Return what the tape keeps of an event's id or type: nothing of one that is no honest id."""
    return text if text is None or len(text) <= LONGEST_ID else None


class JSONReader:
    """Reads a JSON body. One that is larger than `limit` bytes is not kept, and arrives as nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = bytearray()
        self._too_large = False

    def feed(self, chunk: bytes) -> list[Arrival]:
        """Return nothing yet."""
        if len(self._body) + len(chunk) > self._limit:
            self._too_large = True
            self._body.clear()
        if not self._too_large:
            self._body += chunk
        return []

    def end(self) -> list[Arrival]:
        """Return the body's messages."""
        return [Arrival(read_server_messages(bytes(self._body)))] if self._body else []


class InflatingReader:
    """Reads a gzip or zlib body through another reader, on an inflated copy."""

    def __init__(self, inner: Reader, limit: int) -> None:
        self._inner = inner
        self._limit = limit
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._lost = False

    def feed(self, chunk: bytes) -> list[Arrival]:
        """Return what this chunk completes; nothing any more once it cannot be inflated within the limit."""
        arrived: list[Arrival] = []
        while chunk and not self._lost:
            try:
                plain = self._inflate.decompress(chunk, self._limit)
            except zlib.error:
                self._lost = True
                break
            # A bomb: what is left over would have to wait in memory.
            self._lost = bool(self._inflate.unconsumed_tail)
            arrived += [] if self._lost else self._inner.feed(plain)
            chunk = self._inflate.unused_data
            if self._inflate.eof:  # gzip may go on with another member
                self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        return arrived

    def end(self) -> list[Arrival]:
        """Return what the body's end completes."""
        return [] if self._lost else self._inner.end()


def reader_for(response: UpstreamResponse, limit: int) -> Reader | None:
    """Return a reader for the response; `None` for media and encodings that cannot be read along."""
    if response.media is Media.OTHER:
        return None
    reader: Reader = SSEReader(limit) if response.media is Media.SSE else JSONReader(limit)
    if response.content_encoding in (b"", b"identity"):
        return reader
    if response.content_encoding in (b"gzip", b"x-gzip", b"deflate"):
        return InflatingReader(reader, limit)
    return None


def read_whole(response: UpstreamResponse, body: bytes, limit: int) -> list[Arrival]:
    """Return what arrived with a response whose body has come whole."""
    if response.media is Media.JSON and not response.content_encoding and 0 < len(body) <= limit:
        return [Arrival(read_server_messages(body))]
    reader = reader_for(response, limit)
    return [] if reader is None else [*reader.feed(body), *reader.end()]
