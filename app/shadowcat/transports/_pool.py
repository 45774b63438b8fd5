"""The connections to one server: so many at a time, kept for a while between two requests."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import httpx2

from shadowcat.transports._connection import Connection

_FRESH: Final = 0.001
"""Seconds after a response within which the socket is not asked whether the server has closed it: servers do
not, and it would be a system call per request under load."""


class Pool:
    """Connections to one origin.

    The one used last is used first, so that those too many become idle for long and are closed.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, most: int, keepalive: float) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._most = most
        self._keepalive = keepalive
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._taken = 0
        """Connections that are open, opening or promised to a waiter."""
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweep: asyncio.TimerHandle | None = None

    def take(self) -> Connection | None:
        """Return a connection that is idle and, as far as can be known, alive."""
        while self._idle:
            connection = self._idle.pop()
            idle = time.monotonic() - connection.idle_since
            connection.idle_since = 0.0
            if idle < self._keepalive and (connection.is_open if idle < _FRESH else connection.is_quiet):
                return connection
            connection.close()
        return None

    async def acquire(self, timeouts: Mapping[str, Any]) -> Connection:
        """Return a connection: an idle one, a new one, or the next that becomes free.

        Raises:
            httpx2.PoolTimeout: none became free in time.
            httpx2.ConnectTimeout, httpx2.ConnectError: it cannot be opened.
        """
        while (connection := self.take()) is None:
            if self._taken < self._most:
                self._taken += 1
                return await self._connect(timeouts.get("connect"))
            connection = await self._wait(timeouts.get("pool"))
            if connection is None:
                return await self._connect(timeouts.get("connect"))
            if connection.is_quiet:
                return connection
            connection.close()
        return connection

    async def _wait(self, timeout: float | None) -> Connection | None:
        """Return a connection that has become free, or `None` where the caller may open one."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except BaseException as exc:
            if waiter.done() and not waiter.cancelled():
                self._give(waiter.result())
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(exc, TimeoutError):
                raise httpx2.PoolTimeout("All connections are in use.") from None
            raise

    async def _connect(self, timeout: float | None) -> Connection:
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except BaseException as exc:
            self._give(None)
            if isinstance(exc, TimeoutError):
                raise httpx2.ConnectTimeout(f"No connection within {timeout} s.") from None
            if isinstance(exc, OSError):
                raise httpx2.ConnectError(str(exc) or type(exc).__name__) from exc
            raise
        if not connection.is_open:
            self._give(None)
            raise httpx2.ConnectError("The server closed the connection at once.")
        self._connections.add(connection)
        return connection

    def free(self, connection: Connection) -> None:
        """Take a connection for the next request: the one that waits longest has it."""
        if waiter := self._next_waiter():
            waiter.set_result(connection)
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep_in(self._keepalive)

    def gone(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        if connection in self._connections:
            self._connections.discard(connection)
            if connection.idle_since:
                self._idle.remove(connection)
            self._give(None)

    def close(self) -> None:
        """Close every connection, also those in use."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._connections):
            connection.shut()

    def _give(self, what: Connection | None) -> None:
        """Pass on a connection, or with `None` the right to open one."""
        if what is not None:
            self.free(what)
        elif waiter := self._next_waiter():
            waiter.set_result(None)
        else:
            self._taken -= 1

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _sweep_in(self, seconds: float) -> None:
        self._sweep = asyncio.get_running_loop().call_later(seconds, self._close_expired)

    def _close_expired(self) -> None:
        self._sweep = None
        now = time.monotonic()
        while self._idle and (left := self._idle[0].idle_since + self._keepalive - now) <= 0:
            self._idle[0].close()
        if self._idle:
            self._sweep_in(left)
