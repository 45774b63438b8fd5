"""Streams whose events say when they were sent, and what comes back to them by the ids of their events."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING

from .messages import result

if TYPE_CHECKING:
    from .answers import Message, Peer

SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\n%bContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
TICK = (
    b'data: {"jsonrpc":"2.0","method":"notifications/message",'
    b'"params":{"level":"info","data":{"number":%d,"at":%d}}}\n\n'
)
SMALL = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%b"}}\n\n'
SMALL_EVENT = SMALL % (b"x" * (100 - len(SMALL % b"")))
AT_ONCE = 640
"""Small events in one write: 64 kB."""
SECOND = 1_000_000_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def ticks(peer: Peer, message: Message) -> None:
    """`count` events (0: no end) at `rate` per second, the first at once; a pause after the last, the result.

    With `ids` each has an id to come back to the stream by, also after the stub was restarted.
    """
    given = {name: float(bytes(value)) for name, value in message.params.arguments.items() if name != "text"}
    begun, rate, count = monotonic_ns(), given["rate"], int(given.get("count", 0))
    peer.transport.write(SSE_HEAD % peer.session_line())
    await _tick(peer, begun, 1, rate, count, bool(given.get("ids")))
    peer.transport.write(chunk(b"data: %b\n\n" % message.result()) + b"0\r\n\r\n")


async def resumed(peer: Peer, last_id: str) -> None:
    """An endless stream with ids after that event: at once what was due meanwhile."""
    _, begun, rate, number = last_id.split("/")
    peer.transport.write(SSE_HEAD % peer.session_line())
    await _tick(peer, int(begun), int(number) + 1, float(rate), 0, True)


async def _tick(peer: Peer, begun: int, number: int, rate: float, count: int, ids: bool) -> None:
    while True:
        early = begun + (number - 1) * SECOND / rate - monotonic_ns()
        if early > 0:
            await asyncio.sleep(early / SECOND)
        if count and number > count:
            return
        name = b"id: tick/%d/%b/%d\n" % (begun, f"{rate:g}".encode(), number) if ids else b""
        peer.transport.write(chunk(name + TICK % (number, monotonic_ns())))
        number += 1


def due(event_id: str) -> float:
    """When the event of that id was to be sent, in seconds by the monotonic clock."""
    _, begun, rate, number = event_id.split("/")
    return int(begun) / SECOND + (int(number) - 1) / float(rate)


async def burst(peer: Peer, message: Message) -> None:
    """Small events for `seconds`, as fast as the other side takes them; the result says how many."""
    end = monotonic_ns() + float(bytes(message.params.arguments["seconds"])) * SECOND
    peer.transport.write(SSE_HEAD % peer.session_line())
    block, sent = chunk(SMALL_EVENT * AT_ONCE), 0
    while monotonic_ns() < end:
        await peer.writable.wait()
        peer.transport.write(block)
        sent += AT_ONCE
        await asyncio.sleep(0)
    answer = result(bytes(message.id), b'"%d"' % sent)
    peer.transport.write(chunk(b"data: %b\n\n" % answer) + b"0\r\n\r\n")
