"""HTTP/1.1 on asyncio and llhttp: what one request costs here is little beside what the sockets cost."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

import httpx2

from shadowcat.transports._connection import Connection
from shadowcat.transports._exchange import Exchange
from shadowcat.transports._pool import Pool
from shadowcat.transports._request import request_head, whole_body

_PORTS: Final = {"http": 80, "https": 443}
_NO_TIMEOUTS: Final[dict[str, Any]] = {}


class HTTP1Transport(httpx2.AsyncBaseTransport):
    """Reaches servers by HTTP/1.1, plain and over TLS.

    In place of `httpx2.AsyncHTTPTransport`, where neither HTTP/2 nor a proxy is needed. The differences:
    requests and responses that could be understood in two ways are refused, the limit of connections is one
    per origin, an error that the server sends before it has seen the whole request is returned at once, and
    `trace` and `sni_hostname` are not read.

    It runs on the event loop that calls it, and needs no lock.
    """

    def __init__(
        self,
        *,
        max_connections: int = 1000,
        keepalive: float = 2.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Make it; nothing is opened yet.

        Args:
            max_connections: to one origin at a time.
            keepalive: seconds that an idle connection is kept.
            ssl_context: who is trusted, and the certificate of our own if there is one; the system's
                certificate authorities, or those of `SSL_CERT_FILE` or `SSL_CERT_DIR`, by default.
        """
        self._most = max_connections
        self._keepalive = keepalive
        self._ssl_context = ssl_context
        self._pools: dict[tuple[str, str, int | None], Pool] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request, once, and return the response when its head is here.

        A pooled connection that turns out to be closed before a byte was sent on it is replaced.

        Raises:
            httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.PoolTimeout, httpx2.ConnectTimeout,
            httpx2.ConnectError: nothing was sent, or nothing that is a whole request.
            httpx2.WriteTimeout, httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError: the
            request, or a part of it, was sent.
        """
        url = request.url
        pool = self._pools.get((url.scheme, url.host, url.port)) or self._new_pool(url)
        head, length = request_head(request.method, url.raw_path, request.headers.raw)
        body = whole_body(request, length)
        timeouts = request.extensions.get("timeout", _NO_TIMEOUTS)
        connection = pool.take() or await pool.acquire(timeouts)
        exchange = Exchange(connection, request.method, timeouts.get("read"))
        if body is not None:
            connection.start(exchange, head + body, is_all=True)
        else:
            connection.start(exchange, head, is_all=False)
            await _send_body(request, length, connection, exchange)
        await exchange.head()
        return httpx2.Response(exchange.status, headers=exchange.headers, stream=exchange)

    def channel(self, url: httpx2.URL) -> Channel:
        """Return the way to the URL's origin that spares a request the objects around it.

        Raises:
            httpx2.UnsupportedProtocol: it is no `http://` or `https://` URL.
        """
        return Channel(self._pools.get((url.scheme, url.host, url.port)) or self._new_pool(url))

    async def aclose(self) -> None:
        """Close every connection, also those in use. Requests that come later open new ones."""
        for pool in self._pools.values():
            pool.close()

    def _new_pool(self, url: httpx2.URL) -> Pool:
        if url.scheme not in _PORTS or not url.host:
            raise httpx2.UnsupportedProtocol(f"{url.scheme}://{url.host} is no http:// or https:// address")
        tls = self._tls() if url.scheme == "https" else None
        host = url.raw_host.decode("ascii")
        pool = Pool(host, url.port or _PORTS[url.scheme], tls, self._most, self._keepalive)
        self._pools[url.scheme, url.host, url.port] = pool
        return pool

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = httpx2.create_ssl_context()
        self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context


class Channel:
    """Sends requests whose bodies are at hand. An `httpx2.Request` and its response cost 9 µs."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def send(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeouts: Mapping[str, float | None],
    ) -> Exchange:
        """Send the request, once, and return the exchange when the head of its response is here.

        Args:
            method: of the request.
            target: path and query.
            headers: all of them; they say how long the body is.
            body: the whole of it.
            timeouts: seconds to `connect`, to wait for the `pool`, and to `read`.

        Raises:
            httpx2.TransportError: as `HTTP1Transport.handle_async_request` does.
        """
        head, length = request_head(method, target, headers)
        if length != len(body):
            raise httpx2.LocalProtocolError(f"{length} bytes of body are announced, and {len(body)} given.")
        connection = self._pool.take() or await self._pool.acquire(timeouts)
        exchange = Exchange(connection, method, timeouts.get("read"))
        connection.start(exchange, head + body, is_all=True)
        await exchange.head()
        return exchange


async def _send_body(
    request: httpx2.Request, length: int | None, connection: Connection, exchange: Exchange
) -> None:
    """Send a body piece by piece, as fast as the server takes it, until it refuses the rest."""
    timeout = request.extensions.get("timeout", _NO_TIMEOUTS).get("write")
    sent = 0
    try:
        async for piece in request.stream:  # type: ignore[union-attr]
            sent += len(piece)
            if length is not None and sent > length:
                raise httpx2.LocalProtocolError(f"The body is longer than the {length} bytes announced.")
            if piece and not exchange.refuses:
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if length is None else piece)
            while connection.writing_paused and not exchange.refuses:
                await exchange.wait(timeout, httpx2.WriteTimeout)
            if exchange.refuses:
                return
        if length is not None and sent < length:
            raise httpx2.LocalProtocolError(f"{length} bytes of body are announced, and {sent} given.")
    except BaseException as exc:
        exchange.give_up(httpx2.WriteError(f"The request's body broke off: {exc!r}"))
        raise
    connection.send(b"" if length is not None else b"0\r\n\r\n", is_last=True)
