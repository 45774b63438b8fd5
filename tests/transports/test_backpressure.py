"""A reader that is behind stops the server; what it has not read yet is bounded."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.support.upstream import Connection, Received, ScriptedUpstream

Calling = Callable[..., Any]
PIECE = b"x" * 64 * 1024
MOST = 16 * 1024 * 1024
"""Of it, the kernel's buffers on loopback take the larger part."""


class Pusher:
    """Sends without end; knows how much went."""

    def __init__(self) -> None:
        self.sent = 0
        self.is_stuck = anyio.Event()

    async def __call__(self, received: Received, connection: Connection) -> None:
        await connection.start_stream()
        pushing = asyncio.create_task(self.push(connection))
        await connection.peer_left()
        pushing.cancel()

    async def push(self, connection: Connection) -> None:
        while True:
            await connection.chunk(PIECE)
            self.sent += len(PIECE)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_reader_that_is_behind_stops_the_server(
    upstream: ScriptedUpstream, calling: Calling, begun: bool
) -> None:
    upstream.handshake = pusher = Pusher()
    tracemalloc.start()
    try:
        async with calling(upstream.url) as caller, caller.stream() as chunks:
            if begun:
                await anext(chunks)
            with anyio.fail_after(10):
                await _until_still(pusher)
            stuck_at = pusher.sent
            assert stuck_at < MOST
            assert tracemalloc.get_traced_memory()[0] < 2 * 1024 * 1024
            # It goes on from there.
            read = 0
            with anyio.fail_after(10):
                while read < stuck_at + MOST:
                    read += len(await anext(chunks))
            assert pusher.sent > stuck_at
    finally:
        tracemalloc.stop()


async def _until_still(pusher: Pusher) -> None:
    """Return when nothing has been sent while the loop turned a thousand times with the sockets asked."""
    before = -1
    while pusher.sent > before or not before:
        before = pusher.sent
        for _ in range(1000):
            await asyncio.sleep(0)


async def test_what_comes_together_is_handed_on_together(
    upstream: ScriptedUpstream, calling: Calling, is_ours: bool
) -> None:
    if not is_ours:
        return  # the stock transport hands on every chunk for itself
    events = [b"data: %d\n\n" % number for number in range(1000)]

    async def burst(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.send(b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events))
        await connection.end_stream()

    upstream.handshake = burst
    async with calling(upstream.url) as caller, caller.stream() as chunks:
        came = [chunk async for chunk in chunks]
    assert b"".join(came) == b"".join(events)
    assert len(came) < 20


async def test_a_connection_whose_reader_was_behind_is_kept(
    upstream: ScriptedUpstream, calling: Calling
) -> None:
    ports = set()

    async def large(received: Received, connection: Connection) -> None:
        ports.add(connection.writer.get_extra_info("peername")[1])
        await connection.respond(PIECE * 32)

    upstream.handshake = large
    async with calling(upstream.url) as caller:
        for _ in range(3):
            async with caller.stream() as chunks:
                for _ in range(100):
                    await asyncio.sleep(0)
                size = 0
                async for chunk in chunks:
                    size += len(chunk)
                assert size == len(PIECE) * 32
    assert len(ports) == 1
