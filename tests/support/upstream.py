"""A scripted upstream on a real socket: it sends exactly the bytes it is told to, and counts what it gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

SESSION = "upstream-session-1"
INITIALIZE_RESULT = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "serverInfo": {"name": "scripted", "version": "1"},
}


@dataclass
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def message(self) -> Any:
        return json.loads(self.body)

    @property
    def rpc_method(self) -> str | None:
        try:
            return self.message.get("method") if self.body.startswith(b"{") else None
        except RecursionError:
            return None


@dataclass
class Connection:
    """One client connection of the upstream's: write raw bytes to it, or cut it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    closed_by_peer: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def respond(
        self, body: bytes = b"", *headers: tuple[str, str], status: str = "200 OK", length: int | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        lines.append(f"Content-Length: {len(body) if length is None else length}")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def start_stream(self, *headers: tuple[str, str], media: str = "text/event-stream") -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {media}", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in headers]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def peer_left(self) -> None:
        """Return when the proxy has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def cut(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Received, Connection], Awaitable[None]]


class ScriptedUpstream:
    """Answers the handshake by itself, or by `handshake`; everything else by its `script`."""

    def __init__(self) -> None:
        self.url = ""
        self.server: asyncio.Server
        self.received: list[Received] = []
        self.script: Script = echo
        self.handshake: Script | None = None
        self.session: str | None = SESSION
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._serving)

    @property
    def forwarded(self) -> list[Received]:
        """What came besides the handshake."""
        handshake = ("initialize", "notifications/initialized")
        return [each for each in self.received if each.rpc_method not in handshake]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def aclose(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            while True:
                request = await _read_request(reader)
                self.received.append(request)
                await self._answer(request, connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Received, connection: Connection) -> None:
        if self.handshake is not None:
            await self.handshake(request, connection)
        elif request.rpc_method == "initialize":
            headers = [("Content-Type", "application/json")]
            if self.session is not None:
                headers.append(("Mcp-Session-Id", self.session))
            await connection.respond(result(request.message["id"], INITIALIZE_RESULT), *headers)
        elif request.rpc_method == "notifications/initialized":
            await connection.respond(status="202 Accepted")
        else:
            await self.script(request, connection)


def result(request_id: Any, value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": value}).encode()


async def echo(request: Received, connection: Connection) -> None:
    """Answer a request with its params, a DELETE with 200, a GET with 405."""
    if request.method == "GET":
        await connection.respond(status="405 Method Not Allowed")
    elif request.method != "POST":
        await connection.respond()
    elif isinstance(request.message, dict) and "id" in request.message and "method" in request.message:
        body = result(request.message["id"], request.message.get("params"))
        await connection.respond(body, ("Content-Type", "application/json"))
    else:
        await connection.respond(status="202 Accepted")


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(": ")
        headers.append((name.encode("latin-1"), value.encode("latin-1")))
    length = next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)
    return Received(method, target, headers, await reader.readexactly(length))


@asynccontextmanager
async def scripted_upstream() -> AsyncIterator[ScriptedUpstream]:
    """Run a scripted upstream on a free port of loopback."""
    upstream = ScriptedUpstream()
    server = upstream.server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.aclose()
