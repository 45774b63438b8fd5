"""The app behind a real uvicorn, and a client that adds nothing to what a test sends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
import httpx2

from shadowcat import Settings, create_app
from shadowcat.ambient import is_ambient
from shadowcat.service import Service
from shadowcat_stores import Frame, MemoryStore, Session, SessionStore
from tests.support.plain import plain_http
from tests.support.serving import serve

ACCEPT = "application/json, text/event-stream"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "init-1",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@dataclass
class Proxied:
    """A running proxy."""

    service: Service
    store: SessionStore
    base: str
    client: httpx2.AsyncClient
    path: str = "/mcp"
    session_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.base + self.path

    def at(self, other: Proxied) -> Self:
        """Return the other proxy, as the client of this one's session sees it."""
        return type(self)(other.service, other.store, other.base, other.client, session_id=self.session_id)

    def _headers(self, extra: Mapping[str, str]) -> dict[str, str]:
        session = {"Mcp-Session-Id": self.session_id} if self.session_id else {}
        return {**self.headers, **session, **extra}

    async def begin(self, **headers: str) -> httpx2.Response:
        """Begin a session and go on in it."""
        response = await self.post(INITIALIZE, **headers)
        self.session_id = response.headers["mcp-session-id"]
        return response

    async def post(self, message: Any, **headers: str) -> httpx2.Response:
        content = message if isinstance(message, bytes) else json.dumps(message).encode()
        extra = {"Accept": ACCEPT, "Content-Type": "application/json"}
        extra |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(self.url, content=content, headers=self._headers(extra))

    async def call(self, request_id: Any = 1, **params: Any) -> httpx2.Response:
        return await self.post(request("tools/call", request_id, params))

    @asynccontextmanager
    async def stream(
        self, method: str, message: Any = None, **headers: str
    ) -> AsyncIterator[httpx2.Response]:
        extra = {"Accept": ACCEPT} | ({} if message is None else {"Content-Type": "application/json"})
        extra |= headers
        content = None if message is None else json.dumps(message).encode()
        async with self.client.stream(
            method, self.url, content=content, headers=self._headers(extra)
        ) as response:
            yield response

    async def tape(self, session_id: str = "") -> list[Frame]:
        """Return what is recorded by now."""
        await self.service.recorder.flush()
        return await self.store.get_frames(session_id or self.session_id)

    async def sessions(self, *, ambient: bool = False) -> list[Session]:
        """Return those that the store has by now: clients', or those of traffic without a session."""
        await self.service.recorder.flush()
        found = (await self.store.list_sessions()).sessions
        return [each for each in found if is_ambient(each.id) == ambient]


def request(method: str, request_id: Any = 1, params: Any = None) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method}
    return message if params is None else {**message, "params": params}


@asynccontextmanager
async def proxied(
    upstream: str | Mapping[str, str], store: SessionStore | None = None, **settings: Any
) -> AsyncIterator[Proxied]:
    """Run the app in front of the upstream with these settings."""
    store = MemoryStore() if store is None else store
    app = create_app(store, upstream=upstream, settings=Settings(**settings))
    async with serve(app) as base, plain_http() as client:
        client.headers.clear()
        yield Proxied(app.state.shadowcat, store, base, client)


@asynccontextmanager
async def replica(upstream: str, store: SessionStore, **settings: Any) -> AsyncIterator[Proxied]:
    """Run the app on a shared store, where the others know of it by now."""
    async with proxied(upstream, store, **settings) as running:
        while not running.service.owners.id:
            await anyio.lowlevel.checkpoint()
        yield running
