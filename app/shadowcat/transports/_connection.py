"""One connection to a server: what it carries is parsed as it comes, and handed to the exchange under way."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import httptools
import httpx2

from shadowcat.transports._exchange import Exchange

HIGH_WATER: Final = 64 * 1024
"""Bytes of a body that may wait for their reader before the socket is read no further. What one read brings,
256 KiB at most, may come on top."""
MOST_OVERHEAD: Final = 64 * 1024
"""Bytes of a response that are no body: its head and those of 1xx responses, chunk extensions, trailers."""
MOST_FIELDS: Final = 256
_CHUNK_FRAME: Final = 32
"""Bytes around a chunk that do not count as overhead: more than its size and its line ends take."""


class Owner(Protocol):
    """Who is told what becomes of a connection."""

    def free(self, connection: Connection) -> None:
        """Take it for the next exchange."""

    def gone(self, connection: Connection) -> None:
        """Forget it. Called once."""


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection, from the client's side. It carries one exchange at a time.

    llhttp, strict as it is by default, refuses obs-fold, bare CR and LF, NUL and other controls, lengths and
    sizes that are none or overflow, and a second `Content-Length`. What else is wrong is refused here.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._exchange: Exchange | None = None
        self._closed = False
        self._reading = True
        self.writing_paused = False
        self.idle_since = 0.0
        """By `time.monotonic`; 0 while it is in use."""
        self._pieces: list[bytes] = []
        # Called for each chunk, a thousand times in one read: so it is no method of ours.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self._parser: Any = httptools.HttpResponseParser(self)
        # Both lengths: "the Transfer-Encoding overrides the Content-Length", and the connection ends with it.
        # https://www.rfc-editor.org/rfc/rfc9112#section-6.3
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True)
        self._poll: Any = None
        self._overhead = 0
        self._sent = False
        self._reusable = False
        self._reset_head()

    def _reset_head(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._length_given = False
        self._chunked = False
        self._has_head = False
        self._ended = False
        self._until_eof = False

    # What the pool and the transport call.

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it."""
        return not (self._closed or self._transport.is_closing())

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, and the server has neither closed it nor said anything, perhaps in this turn of
        the loop, so that nobody has told us yet."""
        return self.is_open and not self._poll.poll(0)

    def start(self, exchange: Exchange, data: bytes, *, is_all: bool) -> None:
        """Send the first bytes of a request, or all of it."""
        self._overhead = 0
        self._reusable = False
        self._reset_head()
        self._exchange = exchange
        self._sent = is_all
        self._transport.write(data)

    def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Send more of the request."""
        self._sent = is_last
        self._transport.write(data)

    def resume_reading(self) -> None:
        """Read on, where the reader was behind."""
        if not self._reading and not self._closed:
            self._reading = True
            self._transport.resume_reading()

    def close(self) -> None:
        """Drop it at once: nothing that is still to be sent is sent."""
        if not self._closed:
            self._closed = True
            self._exchange = None
            self._transport.abort()
            self._owner.gone(self)

    def shut(self) -> None:
        """Close it, and let the exchange under way know."""
        if self._exchange is not None:
            self._fail(httpx2.ReadError("The transport was closed."))
        self.close()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def pause_writing(self) -> None:
        """Take it that the server reads more slowly than we write."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Take it that it has caught up."""
        self.writing_paused = False
        if self._exchange is not None:
            self._exchange.wake()

    def data_received(self, data: bytes) -> None:
        """Parse what one read has brought."""
        exchange = self._exchange
        if exchange is None:
            self.close()  # an answer to nothing
            return
        fault = ""
        try:
            if not (self._overhead or self._has_head or data.startswith(b"H")):
                raise httptools.HttpParserError("no HTTP")  # llhttp would skip line ends
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            fault = str(exc.__context__ or exc) or "malformed"
        overhead = self._overhead + len(data)
        if pieces := self._pieces:
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            overhead -= len(chunk) + _CHUNK_FRAME * len(pieces)
            pieces.clear()
            if exchange.method != "HEAD":
                exchange.feed(chunk)
        self._overhead = overhead if overhead > 0 else 0
        if self._overhead > MOST_OVERHEAD:
            exchange.status = 0  # also where the head came whole just now
            self._fail(httpx2.RemoteProtocolError("The response has too much that is no body."))
        elif self._ended:
            self._finish(exchange, reusable=not fault)
        elif fault:
            self._fail(httpx2.RemoteProtocolError(f"The response is malformed: {fault}."))
        else:
            if exchange.size > HIGH_WATER and self._reading:
                self._reading = False
                self._transport.pause_reading()
            exchange.wake()

    def eof_received(self) -> None:
        """Take it that the server says no more; the loop closes our end as well."""
        if self._exchange is not None:
            self._end(None)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take it that the connection is gone."""
        if self._exchange is not None:
            self._end(exc)
        self.close()
        self._parser = self.on_body = cast(Any, None)  # they know each other

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Refuse a second response to one request."""
        if self._ended:
            raise ValueError("data after the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; one of the trailers is dropped."""
        if self._has_head:
            return
        value = value.rstrip(b" \t")
        self._headers.append((name, value))
        if len(name) == 14 and name.lower() == b"content-length":
            self._length_given = True
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            if self._chunked or value.lower() != b"chunked":
                raise ValueError("a Transfer-Encoding other than 'chunked'")
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Hand the head on, unless it is an interim response's."""
        exchange: Any = self._exchange
        status = self._parser.get_status_code()
        if len(self._headers) > MOST_FIELDS:
            raise ValueError("too many headers")
        if status < 100 or self._parser.get_http_version() not in ("1.1", "1.0"):
            raise ValueError("no response of HTTP/1")
        self._has_head = True
        if status < 200 and status != 101:
            if self._chunked or self._length_given:
                raise ValueError("an interim response with a body")
            return
        exchange.headers = self._headers
        exchange.status = status
        self._until_eof = not (self._chunked or self._length_given)
        self._ended = exchange.method == "HEAD"

    def on_message_complete(self) -> None:
        """Note the end of the response."""
        exchange: Any = self._exchange
        if exchange.status:
            self._ended = True
            self._reusable = self._parser.should_keep_alive()
        else:
            self._reset_head()

    # What follows from it.

    def _finish(self, exchange: Exchange, *, reusable: bool) -> None:
        self._exchange = None
        exchange.complete()
        reusable = (
            reusable
            and self._sent
            and not self._transport.get_write_buffer_size()
            and not (self._chunked and self._length_given)
            and not (exchange.status == 204 and (self._chunked or self._length_given))
            and self._reusable
        )
        if reusable:
            self._owner.free(self)
        else:
            self.close()

    def _end(self, exc: Exception | None) -> None:
        exchange = cast(Exchange, self._exchange)
        if exc is not None:
            self._fail(httpx2.ReadError(str(exc) or type(exc).__name__))
        elif self._until_eof and exchange.status:
            self._finish(exchange, reusable=False)
        elif exchange.status:
            self._fail(
                httpx2.RemoteProtocolError("The server closed the connection in the middle of the body.")
            )
        else:
            self._fail(httpx2.RemoteProtocolError("The server closed the connection without a response."))

    def _fail(self, error: httpx2.TransportError) -> None:
        exchange = cast(Exchange, self._exchange)
        self._exchange = None
        exchange.fail(error)
        self.close()
