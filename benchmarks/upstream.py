"""The upstream of every measurement: an MCP-like stub that is cheap, scripted and counts what reaches it.

The tool's name says how a call is answered, and the header `X-Stub-Stream` or the query `?stream=` what a
GET gets (405 without): see `answers`. Beside the MCP path, not counted, on any connection: `GET /_count` (by
kind, answers still open), `GET /_written` (how far the flood came), `GET /_cut` (cut the connections of all
answers still open), `GET /_restart` (cut all connections but this one, and know no session any more).
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httptools
import msgspec
import uvloop

from . import answers, ticks
from .answers import Message
from .messages import STATELESS_REVISION

SESSION = b"mcp-session-id"


@dataclass
class Stub:
    """What the connections share."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Requests, by what they were: the tool's name for a call."""
    sessions: set[bytes] = field(default_factory=set)
    streams: int = 0
    """Answers begun that take their time or never end."""
    open_streams: set[asyncio.Task[None]] = field(default_factory=set)
    """Those of them that have not come to their end."""
    peers: set[Peer] = field(default_factory=set)
    flooded: Peer | None = None

    def report(self, path: bytes) -> bytes:
        if path == b"/_written":
            written, waiting = self.flooded.flow() if self.flooded else (0, 0)
            return msgspec.json.encode({"written": written, "waiting": waiting, "taken": written - waiting})
        counts = {"requests": self.kinds.total(), "kinds": self.kinds}
        streams = {"streams": self.streams, "open_streams": len(self.open_streams)}
        return msgspec.json.encode(counts | streams)

    def cut(self, among: Iterable[Peer]) -> bytes:
        """Cut the connections; when that was, in seconds by the monotonic clock."""
        for peer in among:
            peer.transport.abort()
        return b'{"at":%f}' % monotonic()


class Peer(asyncio.Protocol):
    """One connection to the stub."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.transport: asyncio.Transport
        self.decode = msgspec.json.Decoder(Message).decode
        self.parser = httptools.HttpRequestParser(self)
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.written = 0
        self.on_message_begin()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not say so
        self.writable.set()
        self.stub.peers.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stub.peers.discard(self)
        if self.task:
            self.task.cancel()

    # what httptools calls

    def on_message_begin(self) -> None:
        self.url = self.body = b""
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        method = self.parser.get_method()
        if self.url == b"/_cut":
            self.answer(b"200 OK", self.stub.cut([each for each in self.stub.peers if each.is_busy]))
        elif self.url == b"/_restart":
            self.stub.sessions.clear()
            self.answer(b"200 OK", self.stub.cut(self.stub.peers - {self}))
        elif self.url.startswith(b"/_"):
            self.answer(b"200 OK", self.stub.report(self.url))
        elif not self.url.startswith(b"/mcp"):
            self.refuse("elsewhere", b"404 Not Found")
        elif self.url.startswith(b"/mcp/"):
            self.refuse("followed a redirect", b"200 OK")
        elif method == b"POST":
            self.on_post(self.decode(self.body))
        elif method == b"GET":
            self.on_get()
        elif method == b"DELETE":
            self.stub.sessions.discard(self.headers.get(SESSION, b""))
            self.refuse("DELETE", b"200 OK")
        else:
            self.refuse(method.decode(), b"405 Method Not Allowed")

    # the requests

    def on_post(self, message: Message) -> None:
        if message.method == "tools/call":
            self.stub.kinds[message.params.name] += 1
            if self.known(message):
                answers.TOOLS.get(message.params.name, answers.missing)(self, message)
        elif message.method == "initialize":
            self.stub.kinds["initialize"] += 1
            self.headers[SESSION] = session = secrets.token_hex(16).encode()
            self.stub.sessions.add(session)
            self.answer(b"200 OK", message.welcome())
        elif message.method == "tools/list":
            self.stub.kinds["tools/list"] += 1
            if self.known(message):
                self.answer(b"200 OK", message.tools())
        elif message.id:
            self.stub.kinds["other request"] += 1
            if self.known(message):
                self.answer(b"200 OK", message.error("only tools/call is answered"))
        else:
            self.refuse("notification", b"202 Accepted")

    def on_get(self) -> None:
        self.stub.kinds["GET"] += 1
        query = parse_qs(urlsplit(self.url).query).get(b"stream", [b""])[0]
        stream = answers.STREAMS.get((self.headers.get(b"x-stub-stream") or query).decode())
        if stream:
            self.start(stream(self))
        elif last := self.headers.get(b"last-event-id"):
            if self.known(Message()):
                self.start(ticks.resumed(self, last.decode()))
        else:
            self.answer(b"405 Method Not Allowed", b"", b"Allow: POST, DELETE\r\n")

    def refuse(self, kind: str, status: bytes) -> None:
        self.stub.kinds[kind] += 1
        self.answer(status)

    def known(self, message: Message) -> bool:
        """Whether the session is ours, or the revision needs none. If not, that is the answer."""
        session = self.headers.get(SESSION, b"")
        if session in self.stub.sessions:
            return True
        if self.headers.get(b"mcp-protocol-version") == STATELESS_REVISION.encode():
            return True
        self.answer(b"404 Not Found" if session else b"400 Bad Request", message.error("no such session"))
        return False

    # what the answers are made with

    def session_line(self) -> bytes:
        """Servers repeat the session's id on every response."""
        session = self.headers.get(SESSION)
        return b"Mcp-Session-Id: %b\r\n" % session if session in self.stub.sessions else b""

    def answer(self, status: bytes, body: bytes = b"", extra: bytes = b"") -> None:
        if body:
            extra += b"Content-Type: application/json\r\n"
        head = b"HTTP/1.1 %b\r\n%b%bContent-Length: %d\r\n\r\n"
        self.transport.write(head % (status, self.session_line(), extra, len(body)) + body)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is begun and has not come to its end."""
        return self.task is not None and not self.task.done()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer from a task: the stream is open until the task or the connection ends."""
        self.task = asyncio.get_running_loop().create_task(work)
        self.stub.streams += 1
        self.stub.open_streams.add(self.task)
        self.task.add_done_callback(self.stub.open_streams.discard)

    def begin_flood(self) -> None:
        self.stub.flooded = self

    def flow(self) -> tuple[int, int]:
        """The flood's bytes written, and how many of them this process still has."""
        return self.written, self.transport.get_write_buffer_size()


async def serve(port: int) -> None:
    stub = Stub()
    server = await asyncio.get_running_loop().create_server(lambda: Peer(stub), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
