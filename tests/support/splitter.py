"""A load balancer without stickiness: each connection goes to the next server. It can cut them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from typing import TypeVar
from urllib.parse import urlsplit


class Splitter:
    """Passes on bytes. A client that uses a connection for one request only meets the servers in turn."""

    def __init__(self, servers: Sequence[str]) -> None:
        self.base = ""
        self.taken = dict.fromkeys(servers, 0)
        """How many connections each server got, by its base URL."""
        self._next = cycle(servers)
        self._passing: set[asyncio.Task[None]] = set()

    def lead_to(self, *servers: str) -> None:
        """Let the connections of later go to these servers."""
        self.taken |= dict.fromkeys(servers, 0)
        self._next = cycle(servers)

    def cut(self) -> None:
        """Cut every connection on both sides."""
        for task in self._passing:
            task.cancel()

    def passed(self, data: bytes) -> None:
        """Take notice of what a server has sent, before a client gets it."""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = next(self._next)
        self.taken[server] += 1
        task = asyncio.create_task(self._pass(server, reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def aclose(self) -> None:
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _pass(self, server: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = urlsplit(server)
        try:
            try:
                their_reader, their_writer = await asyncio.open_connection(there.hostname, there.port)
            except ConnectionRefusedError:
                return
            try:
                await asyncio.gather(
                    _copy(reader, their_writer), _copy(their_reader, writer, self.passed)
                )
            finally:
                their_writer.transport.abort()
        finally:
            writer.transport.abort()


async def _copy(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passed: Callable[[bytes], None] = lambda data: None,
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            passed(data)
            writer.write(data)
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
