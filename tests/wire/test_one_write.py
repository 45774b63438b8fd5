"""What one turn of the loop brings leaves in one write, and nothing waits for more."""

from __future__ import annotations

import asyncio
from typing import cast

import anyio
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowcat import Settings, create_app
from shadowcat.connection import ClientConnection, OneWrite
from shadowcat_stores import MemoryStore
from tests.support.plain import plain_http
from tests.support.proxying import INITIALIZE, Proxied
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream


class Transport:
    """Remembers what it is told to do."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.done.append("closed")

    def get_extra_info(self, name: str) -> str:
        return name


async def test_what_is_written_in_one_turn_leaves_as_one() -> None:
    transport = Transport()
    one = OneWrite(cast(asyncio.Transport, transport))
    one.write(b"a")
    one.write(b"b")
    assert transport.done == []
    await asyncio.sleep(0)
    assert transport.done == [b"ab"]
    one.write(b"c")
    await asyncio.sleep(0)
    assert transport.done == [b"ab", b"c"]
    assert one.get_extra_info("socket") == "socket"


async def test_much_leaves_at_once() -> None:
    transport = Transport()
    one = OneWrite(cast(asyncio.Transport, transport))
    one.write(b"x" * 65536)
    assert transport.done == []
    one.write(b"y")
    assert transport.done == [b"x" * 65536 + b"y"]
    await asyncio.sleep(0)
    assert len(transport.done) == 1


async def test_what_waits_leaves_before_the_end_and_not_after_it() -> None:
    transport = Transport()
    one = OneWrite(cast(asyncio.Transport, transport))
    one.write(b"last")
    one.close()
    one.write(b"too late")
    transport.closing = True
    await asyncio.sleep(0)
    assert transport.done == [b"last", "closed"]


async def test_a_lone_event_leaves_at_once(upstream: ScriptedUpstream) -> None:
    app = create_app(MemoryStore(), upstream=upstream.url, settings=Settings())
    async with serve(app, http=ClientConnection) as base, plain_http() as client:
        proxy = Proxied(app.state.shadowcat, app.state.shadowcat.store, base, client)
        await proxy.begin()
        seen = anyio.Event()

        async def stream(received: Received, connection: Connection) -> None:
            await connection.start_stream()
            for number in range(3):
                await connection.chunk(b"data: %d\n\n" % number)
                await seen.wait()
            await connection.end_stream()

        upstream.script = stream
        with anyio.fail_after(5):
            async with proxy.stream("GET") as response:
                async for chunk in response.aiter_raw():
                    if b"data: 0" in chunk:
                        seen.set()
                    if b"data: 2" in chunk:
                        break


async def test_middleware_of_the_host_sees_every_request(upstream: ScriptedUpstream) -> None:
    seen: list[str] = []

    class Witness:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["type"])
            await self._app(scope, receive, send)

    app = create_app(MemoryStore(), upstream=upstream.url)
    app.user_middleware.append(Middleware(Witness))
    async with serve(app) as base, plain_http() as client:
        response = await client.post(base + "/mcp", json=INITIALIZE)
        assert response.status_code == 200
    assert "http" in seen
