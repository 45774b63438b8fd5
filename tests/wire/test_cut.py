"""A request that its client leaves, or that a stopping server cuts, while the store or the client is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from shadowcat import Settings, create_app, endpoints, lifespan_of
from shadowcat.errors import UpstreamBroke
from shadowcat_stores import Frame, MemoryStore, Window
from tests.support.plain import plain_http
from tests.support.proxying import Proxied
from tests.support.raw import raw_client, raw_request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream


class SlowStore(MemoryStore):
    """Takes frames, and ends sessions, when it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.goes_on = asyncio.Event(), asyncio.Event()
        self.goes_on.set()

    def stall(self) -> None:
        self.asked.clear()
        self.goes_on.clear()

    async def _wait(self) -> None:
        self.asked.set()
        await self.goes_on.wait()

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        await self._wait()
        return await super().add_frames(frames, keep=keep)

    async def delete_session(self, session_id: str) -> bool:
        await self._wait()
        return await super().delete_session(session_id)


class Running(Proxied):
    """A proxy of which it is known what it raises to the server."""

    raised: list[Exception]
    store: SlowStore


@asynccontextmanager
async def running(upstream: str, **settings: float) -> AsyncIterator[Running]:
    store, raised = SlowStore(), list[Exception]()
    app = create_app(store, upstream=upstream, settings=Settings(**settings))  # type: ignore[arg-type]

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as exc:
            raised.append(exc)
            raise

    async with serve(watched) as base, plain_http() as client:
        client.headers.clear()
        proxy = Running(app.state.shadowcat, store, base, client)
        proxy.raised = raised
        yield proxy


async def ended(proxy: Proxied) -> None:
    while len(proxy.service.watches):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("drains", [False, True], ids=["its client leaves", "the server stops"])
async def test_what_a_request_was_writing_to_the_tape_is_not_lost(
    upstream: ScriptedUpstream, drains: bool
) -> None:
    async with running(upstream.url, record_window=1000) as proxy:
        await proxy.begin()
        await proxy.call(1)
        proxy.store.stall()
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (reader, writer):
                headers = {"Mcp_Session_Id": proxy.session_id, "Last_Event_ID": "s.x-1"}
                writer.write(raw_request(proxy.url, "GET", None, **headers))
                await proxy.store.asked.wait()
                if drains:
                    proxy.service.drain()
                    assert b" 503 " in await reader.readuntil(b"\r\n")
            await ended(proxy)
        proxy.store.goes_on.set()
        assert [frame.direction for frame in await proxy.tape()] == ["client", "server", "client", "server"]
        assert proxy.service.recorder.waiting == 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_comes_to_its_end_all_the_same_was_not_cut(
    upstream: ScriptedUpstream, leaves: bool
) -> None:
    async with running(upstream.url, shutdown_grace=0) as proxy:
        await proxy.begin()
        proxy.store.stall()
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (reader, writer):
                writer.write(raw_request(proxy.url, "DELETE", None, Mcp_Session_Id=proxy.session_id))
                await proxy.store.asked.wait()
                (watch,) = proxy.service.watches
                if leaves:
                    writer.transport.abort()
                    while not watch.has_left:
                        await anyio.lowlevel.checkpoint()
                watch.cut()
                proxy.store.goes_on.set()
                if not leaves:
                    assert b" 200 " in await reader.readuntil(b"\r\n")
            await ended(proxy)
    assert proxy.raised == []


@pytest.mark.parametrize("media", ["text/event-stream", "text/plain"])
async def test_a_client_that_reads_nothing_holds_up_no_server_that_stops(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, media: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream(("Content-Encoding", "br"), media=media)
        await connection.chunk(b"x")
        await connection.peer_left()

    async def receive() -> Message:
        if body:
            return body.pop()
        await forever.wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            stalled.set()
            await forever.wait()

    monkeypatch.setattr(endpoints, "_LAST_WORDS", 0.01)
    upstream.script = script
    stalled, forever = asyncio.Event(), asyncio.Event()
    body: list[Message] = [{"type": "http.request"}]
    app = create_app(MemoryStore(), upstream=upstream.url, settings=Settings(shutdown_grace=0))
    async with lifespan_of(app):
        scope = {"type": "http", "method": "GET", "path": "/mcp", "query_string": b"", "scheme": "http"}
        answering = asyncio.create_task(app({**scope, "headers": [], "app": app}, receive, send))
        with anyio.fail_after(5):
            await stalled.wait()
            app.state.shadowcat.drain()
            with pytest.raises(UpstreamBroke):
                await answering
