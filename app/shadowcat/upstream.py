"""The upstream's side: one call sends one request, and hands back the response with its body unread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self, cast

import anyio
import httpx2

from shadowcat import protocol
from shadowcat.counters import Counters, Reason
from shadowcat.errors import (
    AmbiguousDelivery,
    ShadowcatError,
    UnsendableRequest,
    UpstreamBroke,
    UpstreamBusy,
    UpstreamConnectTimeout,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from shadowcat.headers import Headers, media_type, unsendable
from shadowcat.settings import Settings
from shadowcat.transports import Exchange, HTTP1Transport
from shadowcat.watch import spared

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing an upstream stream may take."""


class Media(Enum):
    """How a response body is to be treated."""

    SSE = b"text/event-stream"
    JSON = b"application/json"
    OTHER = b""

    @classmethod
    def of(cls, content_type: bytes | None) -> Media:
        """Return the treatment that a `Content-Type` calls for."""
        return _MEDIA.get(media_type(content_type), cls.OTHER)


_MEDIA: Final = {each.value: each for each in Media}


@dataclass(slots=True)
class OutboundRequest:
    """What goes upstream."""

    method: str
    headers: Headers
    body: bytes = b""
    query: bytes = b""
    reason: Reason = "forward"


class UpstreamResponse:
    """The response received from the upstream: its head is parsed, its body is not read yet.

    Iterate it once for the body's chunks as they came; `aclose` it in any case, a second time does nothing.
    """

    __slots__ = (
        "_chunks", "_is_read", "_peeked", "_stream", "content_encoding", "headers", "media", "session_id",
        "status", "watch",
    )  # fmt: skip

    def __init__(self, status: int, headers: Headers, stream: httpx2.AsyncByteStream) -> None:
        self.status = status
        # In place: who has parsed them holds them for as long as the stream lasts.
        headers[:] = [(name.lower(), value) for name, value in headers]
        self.headers = headers
        found = dict(headers)
        if b"transfer-encoding" in found:
            # Where both came, this one did not count: https://www.rfc-editor.org/rfc/rfc9112#section-6.3
            headers[:] = [pair for pair in headers if pair[0] != b"content-length"]
        self._stream = stream
        self._chunks = aiter(stream)
        self._peeked: list[bytes] = []
        self._is_read = False
        self.watch: Callable[[bytes], Awaitable[None]] | None = None
        """Awaited with each chunk before it is handed on."""
        self.media = Media.of(found.get(b"content-type"))
        encoding, session_id = found.get(b"content-encoding"), found.get(protocol.SESSION_ID)
        self.content_encoding: bytes = encoding.strip().lower() if encoding else b""
        self.session_id: str | None = session_id.decode("latin-1") if session_id else None

    @classmethod
    def accepted(cls) -> Self:
        """Return the answer to a message that needs to go nowhere any more."""
        return cls(202, [(b"content-length", b"0")], httpx2.ByteStream(b""))

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for chunk in self._peeked:
            yield chunk
        try:
            async for chunk in self._chunks:
                if self.watch is not None:
                    await self.watch(chunk)
                yield chunk
            self._is_read = True
        except httpx2.TransportError as exc:
            raise _broke(exc) from exc

    def take_whole(self) -> bytes | None:
        """Return the body where all of it is here, and nobody has read of it: nothing is left to iterate."""
        if self._peeked or self.watch is not None or not isinstance(self._stream, Exchange):
            return None
        body = self._stream.take_whole()
        self._is_read = body is not None
        return body

    async def peek(self, most: int) -> bytes:
        """Return the body, or its first `most` bytes and what came with them; iterating still gives all.

        A body that ends within them has given its connection back.

        Raises:
            UpstreamBroke: it broke before.
        """
        size = sum(map(len, self._peeked))
        try:
            while size < most:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    await self.aclose()
                    break
                self._peeked.append(chunk)
                size += len(chunk)
        except httpx2.TransportError as exc:
            raise _broke(exc) from exc
        return b"".join(self._peeked)

    async def aclose(self) -> None:
        """Give the connection back, or close it where the body was not read to its end. Not cancelled."""
        if self._is_read:  # there is nothing to wait for, and a guarded wait costs 10 µs
            await self._stream.aclose()
            return
        with spared(), anyio.move_on_after(CLOSE_TIMEOUT):
            await self._stream.aclose()


class Upstream:
    """One MCP server, reached through one transport."""

    def __init__(
        self,
        name: str,
        url: str,
        transport: httpx2.AsyncBaseTransport,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self.name = name
        self.url = url
        self._url = httpx2.URL(url)
        self._target = self._url.raw_path
        self.host = self._url.netloc
        self.shown = f"{self._url.scheme}://{self.host.decode()}{self._url.path}"
        """The URL without what may be secret in it."""
        self.origin = b"%b://%b" % (self._url.raw_scheme, self.host)
        self._transport = transport
        self._channel = transport.channel(self._url) if isinstance(transport, HTTP1Transport) else None
        self._response_timeout = settings.response_timeout
        self._counters = counters
        self._timeouts = {
            "connect": settings.connect_timeout,
            "pool": settings.connect_timeout,
            "read": None,
            "write": None,
        }

    def beside(self, target: str) -> Self:
        """Return what is at another path of this server's, which may have a query."""
        other = copy(self)
        other._url = self._url.copy_with(raw_path=target.encode())
        other._target = other._url.raw_path
        return other

    async def open(self, outbound: OutboundRequest) -> UpstreamResponse:
        """Send the request, once, and return the response when its head is here.

        Raises:
            UpstreamUnreachable, UpstreamConnectTimeout, UpstreamBusy: nothing was sent.
            UnsendableRequest: nothing was sent, since the request is none that can be.
            AmbiguousDelivery, UpstreamTimeout: it was sent, and no answer came.
        """
        self._counters.upstream_requests[outbound.reason] += 1
        timeout = self._response_timeout
        try:
            if timeout is None:
                response = await self._send(outbound)
            else:
                with anyio.fail_after(timeout):
                    response = await self._send(outbound)
        except httpx2.TransportError as exc:
            raise _translate(exc, outbound.headers) from exc
        except AttributeError as exc:
            if "getpeername" not in str(exc):
                raise
            # anyio's sockets know nothing of themselves once they are reset, and before the stock transport
            # sends anything it asks them whether they speak TLS.
            raise UpstreamUnreachable(
                "The MCP server dropped the connection at once. Nothing was sent."
            ) from exc
        except TimeoutError:
            raise UpstreamTimeout(
                f"The MCP server did not answer within {timeout} s. It may have processed the request: check "
                "before you send it again; raise response_timeout where its tools take longer."
            ) from None
        if not 200 <= response.status <= 599:
            await response.aclose()
            raise UpstreamError(f"The MCP server answered with status {response.status}, which is none.")
        return response

    def resolve(self, reference: str) -> str:
        """Return the path and query that a reference from this URL leads to (RFC 3986 §5).

        Raises:
            UpstreamError: it is none, or leads to another origin.
        """
        try:
            url = self._url.join(reference)
        except (httpx2.InvalidURL, ValueError) as exc:
            raise UpstreamError(f"The MCP server names an address that is none: {exc}") from None
        if (url.scheme, url.host, url.port) != (self._url.scheme, self._url.host, self._url.port):
            raise UpstreamError("The MCP server names an address of another origin, which is not followed.")
        return url.raw_path.decode("ascii")

    async def _send(self, outbound: OutboundRequest) -> UpstreamResponse:
        url = self._url if not outbound.query else self._with_query(outbound.query)
        if self._channel is not None:
            target = self._target if url is self._url else url.raw_path
            exchange = await self._channel.send(
                outbound.method, target, outbound.headers, outbound.body, self._timeouts
            )
            return UpstreamResponse(exchange.status, exchange.headers, exchange)
        request = httpx2.Request(
            outbound.method,
            url,
            headers=outbound.headers,
            stream=httpx2.ByteStream(outbound.body),
            extensions={"timeout": self._timeouts},
        )
        response = await self._transport.handle_async_request(request)
        stream = cast(httpx2.AsyncByteStream, response.stream)
        return UpstreamResponse(response.status_code, response.headers.raw, stream)

    def _with_query(self, query: bytes) -> httpx2.URL:
        return self._url.copy_with(query=b"&".join(part for part in (self._url.query, query) if part))


def _broke(exc: httpx2.TransportError) -> UpstreamBroke:
    return UpstreamBroke(f"The upstream's response ended half way: {exc}")


def _translate(exc: httpx2.TransportError, headers: Headers) -> ShadowcatError:
    """Say in our words what a transport reports; what counts is whether anything may have been processed.

    The address is for the log, not for the client: it may be an internal one.
    """
    detail = (str(exc) or type(exc).__name__).rstrip(".")
    if isinstance(exc, httpx2.ConnectTimeout):
        return UpstreamConnectTimeout("The MCP server did not take the connection in time. Nothing was sent.")
    if isinstance(exc, httpx2.PoolTimeout):
        return UpstreamBusy(
            "All connections to the MCP server are in use. Nothing was sent: try again, or raise "
            "max_connections."
        )
    if isinstance(exc, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.ProxyError):
        hint = (
            "does it speak TLS, or is its URL http://?" if "SSL" in detail else "is it running at this URL?"
        )
        return UpstreamUnreachable(f"The MCP server cannot be reached ({detail}): {hint} Nothing was sent.")
    if isinstance(exc, httpx2.LocalProtocolError):
        name = unsendable(headers)
        what = f"The header {name} cannot stand in a request" if name else "The request cannot be sent"
        return UnsendableRequest(f"{what} ({detail}). Nothing was sent to the MCP server.")
    return AmbiguousDelivery(
        f"The connection to the MCP server was lost after the request was sent ({detail}). "
        "It may have been processed: check before you send it again."
    )
