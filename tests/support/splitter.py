"""A load balancer without stickiness: each connection goes to the next server. It can cut them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import cycle
from typing import TypeVar
from urllib.parse import urlsplit


class Splitter:
    """Passes on bytes. A client that uses a connection for one request only meets the servers in turn."""

    def __init__(self, servers: Sequence[str]) -> None:
        self.base = ""
        self.taken: dict[str, int] = {}
        """How many connections each server got, by its base URL."""
        self._has_some = asyncio.Event()
        self.lead_to(*servers)
        self._passing: set[asyncio.Task[None]] = set()

    def lead_to(self, *servers: str) -> None:
        """Let the connections of later go to these servers; where there are none, wait for some."""
        self.taken |= dict.fromkeys(servers, 0)
        self._next = cycle(servers)
        if servers:
            self._has_some.set()
        else:
            self._has_some.clear()

    def cut(self) -> None:
        """Cut every connection on both sides."""
        for task in self._passing:
            task.cancel()

    def passed(self, client: asyncio.StreamWriter, data: bytes) -> bytes:
        """Return what the client gets for what a server has sent on this connection."""
        return data

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def aclose(self) -> None:
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._has_some.wait()
            server = next(self._next)
            self.taken[server] += 1
            there = urlsplit(server)
            their_reader, their_writer = await asyncio.open_connection(there.hostname, there.port)
            try:
                await asyncio.gather(
                    _copy(reader, their_writer), _copy(their_reader, writer, partial(self.passed, writer))
                )
            finally:
                their_writer.transport.abort()
        finally:
            writer.transport.abort()


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passed: Callable[[bytes], bytes] = lambda data: data,
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(passed(data))
            await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.write_eof()


@asynccontextmanager
async def splitter(*servers: str) -> AsyncIterator[Splitter]:
    """Run one in front of the servers, which are given by their base URLs."""
    async with splitting(Splitter(servers)) as split:
        yield split


Split = TypeVar("Split", bound=Splitter)


@asynccontextmanager
async def splitting(split: Split) -> AsyncIterator[Split]:
    """Run this one."""
    server = await asyncio.start_server(split.accept, "127.0.0.1", 0)
    split.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield split
    finally:
        server.close()
        await split.aclose()
