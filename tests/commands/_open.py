"""A client in the middle of something, when the server is told to stop."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx2

from tests.support.plain import plain_http
from tests.support.proxying import ACCEPT, INITIALIZE
from tests.support.upstream import Connection, Received, ScriptedUpstream

FIRST_EVENT = b": open\n\n"
JSON = {"Accept": ACCEPT, "Content-Type": "application/json"}


class NeverEnds:
    """Opens a stream and leaves it open; where the method is `silent`, does not even answer."""

    def __init__(self) -> None:
        self.reached = anyio.Event()

    async def __call__(self, received: Received, connection: Connection) -> None:
        self.reached.set()
        if received.rpc_method != "silent":
            await connection.start_stream()
            await connection.chunk(FIRST_EVENT)
        await connection.peer_left()


class Caller:
    """A client with a session of its own, through the proxy at `url`."""

    def __init__(self, http: httpx2.AsyncClient, url: str, script: NeverEnds) -> None:
        self.http = http
        self.url = url
        self.session = ""
        self.reached_the_server = script.reached

    async def begin(self) -> None:
        """Begin a session."""
        response = await self.http.post(self.url, json=INITIALIZE, headers=JSON)
        response.raise_for_status()
        self.session = response.headers["mcp-session-id"]

    @asynccontextmanager
    async def open_stream(self, verb: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream by GET or POST; give its chunks after the first, which is here."""
        headers = {**JSON, "Mcp-Session-Id": self.session}
        if verb == "GET":
            del headers["Content-Type"]
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"} if verb == "POST" else None
        async with self.http.stream(verb, self.url, headers=headers, json=body) as response:
            chunks = response.aiter_raw()
            assert await anext(chunks) == FIRST_EVENT
            yield chunks

    async def ask(self, method: str) -> httpx2.Response:
        """Send a request and await its answer."""
        message = {"jsonrpc": "2.0", "id": 7, "method": method}
        return await self.http.post(self.url, json=message, headers={**JSON, "Mcp-Session-Id": self.session})


@asynccontextmanager
async def caller(url: str, upstream: ScriptedUpstream) -> AsyncIterator[Caller]:
    """Give a client that has begun a session; what it calls from then on never ends."""
    with anyio.fail_after(30):
        async with plain_http(timeout=None) as http:
            upstream.script = script = NeverEnds()
            client = Caller(http, url, script)
            await client.begin()
            yield client


def is_said_to_be_lost(chunks: list[bytes]) -> bool:
    """Return whether a stream ends with an answer that says that there is none."""
    *_, last = b"".join(chunks).strip().split(b"data: ")
    error = json.loads(last)["error"]
    return bool(error["code"] == -31001 and error["data"] == {"reason": "ambiguous_delivery"})
