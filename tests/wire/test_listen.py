"""`subscriptions/listen`, the long-lived stream of revision 2026-07-28: idle, drained, and left."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.proxying import Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.upstream import Connection, Received, ScriptedUpstream

MODERN = {"MCP-Protocol-Version": "2026-07-28"}
LISTEN = request("subscriptions/listen", "l-1", {"notifications": {"toolsListChanged": True}})
COMMENT = b":\n\n"
ACKNOWLEDGED = b'data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged"}\n\n'
CHANGED = b'data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
RESULT = {
    "jsonrpc": "2.0",
    "id": "l-1",
    "result": {
        "resultType": "complete",
        "_meta": {"io.modelcontextprotocol/subscriptionId": "l-1"},
    },
}


class Stream:
    """The upstream's side of one stream."""

    def __init__(self, upstream: ScriptedUpstream, *headers: tuple[str, str]) -> None:
        upstream.script = self.answer
        self._headers = headers
        self._connection: Connection
        self.opened = anyio.Event()
        self.left = anyio.Event()

    async def answer(self, received: Received, connection: Connection) -> None:
        if self.opened.is_set():
            await connection.respond(b"{}", ("Content-Type", "application/json"))
            return
        await connection.start_stream(*self._headers)
        self._connection = connection
        self.opened.set()
        await connection.peer_left()
        self.left.set()

    async def send(self, data: bytes) -> None:
        await self._connection.chunk(data)

    async def end(self) -> None:
        await self._connection.end_stream()


class Reading:
    """The client's side."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_raw()
        self._got = b""

    async def until(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        while len(self._got) < size:
            self._got += await anext(self._chunks)
        data, self._got = self._got[:size], self._got[size:]
        return data

    async def rest(self) -> bytes:
        return self._got + b"".join([chunk async for chunk in self._chunks])


@asynccontextmanager
async def reading(proxy: Proxied, message: Any = LISTEN, **headers: str) -> AsyncIterator[Reading]:
    with anyio.fail_after(5):
        async with proxy.stream("POST", message, **MODERN, **headers) as response:
            assert response.status_code == 200
            yield Reading(response)


# -- idle ---------------------------------------------------------------------------------------------------


async def test_a_silent_stream_is_kept_alive(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url, stream_keepalive=0.05) as proxy, reading(proxy) as client:
        assert await client.until(3 * len(COMMENT)) == 3 * COMMENT
        await stream.opened.wait()
        await stream.send(ACKNOWLEDGED)
        await stream.end()
        assert (await client.rest()).replace(COMMENT, b"") == ACKNOWLEDGED


@pytest.mark.parametrize("sse", [CHANGED, CHANGED.replace(b"\n", b"\r\n"), CHANGED.replace(b"\n", b"\r")])
async def test_a_comment_comes_between_events_only(upstream: ScriptedUpstream, sse: bytes) -> None:
    stream = Stream(upstream)
    parts = {sse[:10]: False, sse[10:-3]: False, sse[-3:]: True, sse[:-1]: False, sse[-1:]: True}
    async with proxied(upstream.url, stream_keepalive=0) as proxy, reading(proxy) as client:
        await stream.opened.wait()
        for part, is_end in parts.items():
            await stream.send(part)
            assert await client.until(len(part)) == part
            proxy.service.streams.keep_alive(0)
            if is_end:
                assert await client.until(len(COMMENT)) == COMMENT
        await stream.end()
        assert await client.rest() == b""


async def test_a_stream_of_any_request_is_kept_alive(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url) as proxy, reading(proxy, request("tools/call")) as client:
        await stream.opened.wait()
        proxy.service.streams.keep_alive(0)
        assert await client.until(len(COMMENT)) == COMMENT


@pytest.mark.parametrize("header", [("Content-Encoding", "gzip"), None])
async def test_nothing_is_put_into_what_cannot_take_it(
    upstream: ScriptedUpstream, header: tuple[str, str] | None
) -> None:
    """A compressed stream, and one whose length has been said."""
    body = gzip.compress(ACKNOWLEDGED)
    sent, go_on = anyio.Event(), anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", f"Content-Length: {len(body)}"]
        if header is not None:
            lines[2:] = ["Transfer-Encoding: chunked", ": ".join(header)]
            await connection.send("\r\n".join([*lines, "", ""]).encode())
        else:
            await connection.send("\r\n".join([*lines, "", ""]).encode())
        sent.set()
        await go_on.wait()
        if header is not None:
            await connection.chunk(body)
            await connection.end_stream()
        else:
            await connection.send(body)

    upstream.script = script
    async with proxied(upstream.url) as proxy, reading(proxy) as client:
        await sent.wait()
        proxy.service.streams.keep_alive(0)
        proxy.service.streams.drain()
        go_on.set()
        assert await client.rest() == body


# -- drained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen_id", ["l-1", 7])
@pytest.mark.parametrize("sent", [b"", ACKNOWLEDGED, ACKNOWLEDGED + CHANGED])
async def test_a_drain_ends_it_with_its_result(
    upstream: ScriptedUpstream, sent: bytes, listen_id: Any
) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url) as proxy:
        async with reading(proxy, LISTEN | {"id": listen_id}) as client:
            await stream.opened.wait()
            if sent:
                await stream.send(sent)
            assert await client.until(len(sent)) == sent
            proxy.service.drain()
            event = (await client.rest()).decode()
            await stream.left.wait()
        assert event.startswith("data: ")
        assert event.endswith("\n\n")
        said = json.loads(event.removeprefix("data: "))
        meta = {"io.modelcontextprotocol/subscriptionId": listen_id}
        assert said == {**RESULT, "id": listen_id, "result": {"resultType": "complete", "_meta": meta}}
        assert len(proxy.service.streams) == 0


async def test_a_drain_waits_for_the_event_that_is_on_its_way(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url) as proxy, reading(proxy) as client:
        await stream.opened.wait()
        await stream.send(CHANGED[:20])
        assert await client.until(20) == CHANGED[:20]
        proxy.service.drain()
        await stream.send(CHANGED[20:])
        assert await client.until(len(CHANGED) - 20) == CHANGED[20:]
        assert json.loads((await client.rest()).removeprefix(b"data: ")) == RESULT
        await stream.left.wait()


async def test_the_servers_own_end_stays_as_it_is(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    ending = b"data: " + json.dumps(RESULT).encode() + b"\n\n"
    async with proxied(upstream.url) as proxy, reading(proxy) as client:
        await stream.opened.wait()
        await stream.send(ACKNOWLEDGED + ending)
        await stream.end()
        assert await client.rest() == ACKNOWLEDGED + ending


async def test_a_drain_lets_other_streams_finish(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url) as proxy, reading(proxy, request("tools/call")) as client:
        await stream.opened.wait()
        proxy.service.drain()
        await stream.send(CHANGED)
        await stream.end()
        assert await client.rest() == CHANGED


async def test_what_has_not_begun_at_a_drain_goes_to_another_replica(upstream: ScriptedUpstream) -> None:
    """Before the server has answered, and when the server stops already: the request has no effect."""
    asked = anyio.Event()

    async def silent(received: Received, connection: Connection) -> None:
        asked.set()
        await connection.peer_left()

    upstream.script = silent
    async with proxied(upstream.url) as proxy:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:

                async def drain() -> None:
                    await asked.wait()
                    proxy.service.drain()

                tasks.start_soon(drain)
                for _ in range(2):
                    response = await proxy.post(LISTEN, **MODERN)
                    assert response.status_code == 503
                    assert response.headers["retry-after"] == "1"
                    assert response.json()["error"]["data"] == {"reason": "stopping"}
                    assert response.json()["id"] == "l-1"
    assert len(upstream.received) == 1


# -- left ---------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_it_at_the_server(upstream: ScriptedUpstream) -> None:
    stream = Stream(upstream)
    async with proxied(upstream.url) as proxy:
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (reader, writer):
                writer.write(raw_request(proxy.url, "POST", LISTEN, **MODERN))
                await stream.opened.wait()
                await stream.send(ACKNOWLEDGED)
                await reader.readuntil(b"acknowledged")
                proxy.service.streams.keep_alive(0)
                await reader.readuntil(COMMENT)
            await stream.left.wait()
            while len(proxy.service.streams):
                await anyio.lowlevel.checkpoint()
        assert proxy.service.streams.sessionless == set()
