"""How the stub answers a call, by the tool's name, and a GET, by the stream that was asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Protocol

import msgspec

from . import ticks
from .messages import result
from .ticks import SSE_HEAD, chunk

PACE = 0.01
"""Seconds between the events of a paced stream."""
FLOOD = b"data: " + b"x" * 1000 + b"\n\n"
SMALL_BUFFER = 64 * 1024
"""The socket's send buffer under a flood: what the kernel hoards shall not hide what the proxy hoards."""

JSON_HEAD = b"HTTP/1.1 200 OK\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Peer(Protocol):
    """The connection that is answered, as far as an answer needs it."""

    transport: asyncio.Transport
    writable: asyncio.Event
    written: int

    def session_line(self) -> bytes: ...

    def answer(self, status: bytes, body: bytes = b"", extra: bytes = b"") -> None: ...

    def start(self, work: Coroutine[Any, Any, None]) -> None: ...

    def begin_flood(self) -> None: ...


class Params(msgspec.Struct):
    name: str = ""
    protocolVersion: str = ""
    arguments: dict[str, msgspec.Raw] = {}


class Message(msgspec.Struct):
    """A JSON-RPC message with what the stub needs of it; the id and the text are given back as they came."""

    method: str = ""
    id: msgspec.Raw = msgspec.Raw()
    params: Params = msgspec.field(default_factory=Params)

    def result(self) -> bytes:
        return result(bytes(self.id), bytes(self.params.arguments.get("text", b'""')))

    def error(self, text: str) -> bytes:
        reply = {"jsonrpc": "2.0", "id": self.id or None, "error": {"code": -32001, "message": text}}
        return msgspec.json.encode(reply)

    def tools(self) -> bytes:
        """The answer to `tools/list`: gateways look there before they call."""
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        tools = [{"name": name, "inputSchema": schema} for name in ("echo", "echo_sse")]
        return msgspec.json.encode({"jsonrpc": "2.0", "id": self.id, "result": {"tools": tools}})

    def welcome(self) -> bytes:
        """The answer to `initialize`."""
        server = {"name": "stub", "version": "1"}
        abilities: dict[str, dict[str, Any]] = {"tools": {}, "logging": {}}
        welcome = {
            "protocolVersion": self.params.protocolVersion,
            "capabilities": abilities,
            "serverInfo": server,
        }
        return msgspec.json.encode({"jsonrpc": "2.0", "id": self.id, "result": welcome})


# at once: each leaves in one write


def echo(peer: Peer, message: Message) -> None:
    peer.answer(b"200 OK", message.result())


def echo_sse(peer: Peer, message: Message) -> None:
    event = chunk(b"event: message\ndata: %b\n\n" % message.result())
    peer.transport.write(SSE_HEAD % peer.session_line() + event + b"0\r\n\r\n")


def redirect(peer: Peer, message: Message) -> None:
    peer.answer(b"307 Temporary Redirect", message.error("over there"), b"Location: /mcp/elsewhere\r\n")


def missing(peer: Peer, message: Message) -> None:
    peer.answer(b"404 Not Found", message.error("no such tool"))


def broken(peer: Peer, message: Message) -> None:
    peer.answer(b"500 Internal Server Error", message.error("broken"))


def half_sse(peer: Peer, message: Message) -> None:
    peer.transport.write(SSE_HEAD % peer.session_line() + chunk(b"data: " + message.result()[:40]))
    peer.transport.close()


def half_json(peer: Peer, message: Message) -> None:
    body = message.result()
    peer.transport.write(JSON_HEAD % (peer.session_line(), len(body)) + body[:40])
    peer.transport.close()


# in time, or never


async def never(peer: Peer) -> None:
    """Not even headers."""
    await asyncio.get_running_loop().create_future()


async def slow(peer: Peer, message: Message) -> None:
    await asyncio.sleep(0.2)
    echo(peer, message)


async def idle(peer: Peer) -> None:
    """A stream that is opened and then silent."""
    peer.transport.write(SSE_HEAD % peer.session_line() + chunk(b": open\n\n"))
    await never(peer)


async def paced(peer: Peer) -> None:
    peer.transport.write(SSE_HEAD % peer.session_line())
    for number in count(1):
        peer.transport.write(chunk(notification(number)))
        await asyncio.sleep(PACE)


async def flood(peer: Peer) -> None:
    """Push as fast as the other side takes it, without end."""
    peer.begin_flood()
    connected = peer.transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    peer.transport.write(SSE_HEAD % peer.session_line())
    block = chunk(FLOOD * 16)
    while True:
        await peer.writable.wait()
        peer.transport.write(block)
        peer.written += len(block)
        await asyncio.sleep(0)


def notification(number: int) -> bytes:
    params = b'{"level":"info","data":"event %d"}' % number
    return b'data: {"jsonrpc":"2.0","method":"notifications/message","params":%b}\n\n' % params


STREAMS: dict[str, Callable[[Peer], Coroutine[Any, Any, None]]] = {
    "idle": idle,
    "paced": paced,
    "flood": flood,
}

TOOLS: dict[str, Callable[[Peer, Message], None]] = {
    "echo": echo,
    "echo_sse": echo_sse,
    "redirect": redirect,
    "missing": missing,
    "broken": broken,
    "half_sse": half_sse,
    "half_json": half_json,
    "slow": lambda peer, message: peer.start(slow(peer, message)),
    "never": lambda peer, _: peer.start(never(peer)),
    "idle": lambda peer, _: peer.start(idle(peer)),
    "paced": lambda peer, _: peer.start(paced(peer)),
    "flood": lambda peer, _: peer.start(flood(peer)),
    "ticks": lambda peer, message: peer.start(ticks.ticks(peer, message)),
    "burst": lambda peer, message: peer.start(ticks.burst(peer, message)),
}
