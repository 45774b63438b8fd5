"""A server on the scripted upstream that keeps sessions, and forgets them when it is told to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2

from shadowcat_stores import Session
from tests.support.proxying import Proxied
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, echo, result

RECOVERY = ["ping", "initialize", "notifications/initialized"]
"""What the proxy sends on its own to restore a session."""

JSON = ("Content-Type", "application/json")
TEXT = ("Content-Type", "text/plain; charset=utf-8")


@dataclass(frozen=True)
class Refusal:
    """How a server says that it knows no such session."""

    status: str
    body: bytes
    header: tuple[str, str] = JSON


def rpc_refusal(status: str, code: int, message: str) -> Refusal:
    error = {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": None}
    return Refusal(status, json.dumps(error).encode())


REFUSALS = {
    "the Python SDK": rpc_refusal("404 Not Found", -32600, "Session not found"),
    "the Python SDK until 1.25": Refusal(
        "400 Bad Request", b"Bad Request: No valid session ID provided", TEXT
    ),
    "the TypeScript SDK": rpc_refusal("404 Not Found", -32001, "Session not found"),
    "the TypeScript SDK with one transport": rpc_refusal(
        "400 Bad Request", -32000, "Bad Request: Server not initialized"
    ),
    "the TypeScript examples": rpc_refusal(
        "400 Bad Request", -32000, "Bad Request: No valid session ID provided"
    ),
    "the TypeScript examples' GET": Refusal("400 Bad Request", b"Invalid or missing session ID", TEXT),
    "mcp-go": Refusal("400 Bad Request", b"Invalid session ID\n", TEXT),
    "no word of it": Refusal("404 Not Found", b""),
}


@dataclass
class ForgetfulServer:
    """Executes what comes in a session it knows; `executed` has the params of each `tools/call`."""

    upstream: ScriptedUpstream
    refusal: Refusal = REFUSALS["the Python SDK"]
    live: set[str] = field(default_factory=set)
    begun: int = 0
    answer: dict[str, Any] = field(default_factory=lambda: dict(INITIALIZE_RESULT))
    executed: list[Any] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.upstream.handshake = self.serve

    @property
    def methods(self) -> list[str | None]:
        """What it was sent, as JSON-RPC methods or HTTP's."""
        return [each.rpc_method or each.method for each in self.upstream.received]

    def forget(self) -> None:
        self.live.clear()
        self.upstream.received.clear()

    async def serve(self, received: Received, connection: Connection) -> None:
        session_id = (received.header(b"mcp-session-id") or b"").decode()
        if received.rpc_method == "initialize":
            await self.initialize(received, connection)
        elif session_id not in self.live:
            await self.refuse(connection)
        elif received.method == "DELETE":
            self.ended.append(session_id)
            await echo(received, connection)
        else:
            await self.execute(received, connection)

    async def initialize(self, received: Received, connection: Connection) -> None:
        self.begun += 1
        session_id = f"upstream-{self.begun}"
        self.live.add(session_id)
        body = result(received.message["id"], self.answer)
        await connection.respond(body, JSON, ("Mcp-Session-Id", session_id))

    async def refuse(self, connection: Connection) -> None:
        await connection.respond(self.refusal.body, self.refusal.header, status=self.refusal.status)

    async def execute(self, received: Received, connection: Connection) -> None:
        if received.method == "GET":
            await connection.start_stream()
            await connection.chunk(b'data: {"jsonrpc":"2.0","method":"notifications/hello"}\n\n')
            await connection.end_stream()
            return
        if received.rpc_method == "tools/call":
            self.executed.append(received.message.get("params"))
        await echo(received, connection)


async def stored(proxy: Proxied) -> Session | None:
    return await proxy.store.get_session(proxy.session_id)


async def upstream_id(proxy: Proxied) -> str | None:
    session = await stored(proxy)
    assert session is not None
    return session.upstream_session_id


def requests_of(proxy: Proxied) -> tuple[int, int, int]:
    """How many came from clients, went upstream for them, and went there to recover."""
    counters = proxy.service.counters
    upstream = counters.upstream_requests
    return counters.client_requests, upstream["forward"], upstream["recover"]


async def call_all(proxies: list[Proxied], server: ForgetfulServer, count: int) -> list[httpx2.Response]:
    """Call `count` times at once; the server refuses none before it has got them all."""
    responses: list[httpx2.Response] = []
    refuse, arrived = server.refuse, anyio.Event()
    waiting = 0

    async def refuse_all_together(connection: Connection) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == count:
            arrived.set()
        await arrived.wait()
        await refuse(connection)

    async def call(number: int) -> None:
        responses.append(await proxies[number % len(proxies)].call(number, number=number))

    server.refuse = refuse_all_together  # type: ignore[method-assign]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(call, number)
    return responses
