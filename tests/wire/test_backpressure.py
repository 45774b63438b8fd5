"""A slow client stops the upstream: nothing is read ahead, and memory stays flat."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import anyio
import httpx2
import pytest

from shadowcat import Settings, create_app
from shadowcat_stores import MemoryStore
from tests.support.plain import plain_http
from tests.support.proxying import Proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream, result

EVENT = b"data: " + b"x" * 1000 + b"\n\n"


class Counting(httpx2.AsyncHTTPTransport):
    """Counts the bytes that the proxy takes from the upstream."""

    taken = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        response.stream = _CountingStream(self, response.stream)  # type: ignore[arg-type]
        return response


class _CountingStream(httpx2.AsyncByteStream):
    def __init__(self, counting: Counting, inner: httpx2.AsyncByteStream) -> None:
        self.counting = counting
        self.inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.inner:
            self.counting.taken += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()


async def push_without_end(received: Received, connection: Connection) -> None:
    await connection.start_stream()
    pushing = asyncio.create_task(_push(connection))
    await connection.peer_left()
    pushing.cancel()


async def _push(connection: Connection) -> None:
    while True:
        await connection.chunk(EVENT * 64)


@pytest.mark.parametrize("tape", ["off", "window", "full"])
async def test_a_stalled_client_stops_the_upstream(upstream: ScriptedUpstream, tape: str) -> None:
    store, transport = MemoryStore(), Counting()
    app = create_app(store, upstream=upstream.url, transport=transport, settings=Settings(tape=tape))  # type: ignore[arg-type]
    # Fixed buffers, so that the kernel's growing of them is not taken for the proxy's.
    async with serve(app, send_buffer=64 * 1024) as base, plain_http() as client:
        proxy = Proxied(app.state.shadowcat, store, base, client)
        await proxy.begin()
        upstream.script = push_without_end
        async with raw_client(proxy.url, receive_buffer=64 * 1024) as (_, writer):
            message = request("tools/call")
            writer.write(raw_request(proxy.url, "POST", message, Mcp_Session_Id=proxy.session_id))
            with anyio.fail_after(20):
                await _ask_until_still(client, base, transport)
            tracemalloc.start()
            await _ask(client, base, times=50)
            grown, _peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert transport.taken < 1024 * 1024
            assert grown < 512 * 1024
    await transport.aclose()


async def _ask(client: httpx2.AsyncClient, base: str, times: int) -> None:
    for _ in range(times):
        assert (await client.get(base + "/healthz")).status_code == 200


async def _ask_until_still(client: httpx2.AsyncClient, base: str, transport: Counting) -> None:
    """Return when the stalled stream has taken nothing while the proxy answered 50 other requests."""
    seen = 0
    while transport.taken == 0 or transport.taken > seen:
        seen = transport.taken
        assert seen < 1024 * 1024
        await _ask(client, base, times=50)


async def test_a_client_that_reads_again_gets_everything(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    events = [b"data: %07d" % number + b"x" * 1000 + b"\n\n" for number in range(3000)]
    events.append(b"data: " + result(1, "done") + b"\n\n")

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        for event in events:
            await connection.chunk(event)
        await connection.end_stream()

    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(20):
        async with raw_client(proxy.url, receive_buffer=4096) as (reader, writer):
            message = request("tools/call")
            writer.write(raw_request(proxy.url, "POST", message, Mcp_Session_Id=proxy.session_id))
            received = bytearray()
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += await reader.read(10_000)
    assert received.count(b"data: ") == len(events)
    for event in (events[0], events[1500], events[-1]):
        assert event in received
