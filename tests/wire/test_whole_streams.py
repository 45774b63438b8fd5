"""A stream that answers a request and has come whole with its head: it passes in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest

from tests.support.events import Events, message
from tests.support.proxying import Proxied, proxied, request
from tests.support.told import numbers, progress, resuming
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


def answering(*events: bytes) -> Callable[[Received, Connection], Awaitable[None]]:
    """A script that answers a POST with all of these events at once."""

    async def script(received: Received, connection: Connection) -> None:
        if received.method == "GET":
            await connection.respond(status="405 Method Not Allowed")
        else:
            body = b"".join(b"data: %b\n\n" % event for event in events)
            await connection.respond(body, ("Content-Type", "text/event-stream"))

    return script


async def test_it_is_numbered_recorded_and_sent_as_one(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    upstream.script = answering(progress(1), result("c-1", "done"))
    with anyio.fail_after(5):
        async with proxy.stream("POST", request("tools/call", "c-1")) as response:
            assert "content-length" not in response.headers  # that was without the ids
            chunks = [chunk async for chunk in response.aiter_raw()]
    assert len(proxy.service.streams) == 0
    first, second = await _events(proxy)
    assert b"".join(chunks) == b"id: %b\ndata: %b\n\nid: %b\ndata: %b\n\n" % (
        first.encode(),
        progress(1),
        second.encode(),
        result("c-1", "done"),
    )
    with anyio.fail_after(5):
        async with resuming(proxy, first) as events:
            assert numbers(await events.rest()) == ["done"]


async def _events(proxy: Proxied) -> list[str]:
    """The ids of the last stream's events, as the tape makes them."""
    frames = [frame for frame in await proxy.tape() if frame.position]
    assert [frame.position for frame in frames] == [1, 2]
    return [f"{frame.stream}-{frame.position}" for frame in frames]


async def test_what_must_be_durable_first_is(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, record_window=0) as proxy:
        await proxy.begin()
        upstream.script = answering(result("c-1", "done"))
        with anyio.fail_after(5):
            async with proxy.stream("POST", request("tools/call", "c-1")) as response:
                await anext(response.aiter_raw())
                frames = await proxy.store.get_frames(proxy.session_id)
        assert frames[-1].envelope.kind == "response"


async def test_where_the_answer_is_missing_that_is_said(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    upstream.script = answering(progress(1))
    with anyio.fail_after(5):
        async with proxy.stream("POST", request("tools/call", "c-1")) as response:
            first, ambiguous = await Events(response).rest()
    assert numbers([first]) == [1]
    assert message(ambiguous)["error"]["code"] == -31001
    assert [frame.position for frame in await proxy.tape() if frame.position] == [1, 2]


@pytest.mark.parametrize("tape", ["off", "window"])
async def test_of_a_stream_that_passes_unread_the_head_passes_too(
    upstream: ScriptedUpstream, tape: str
) -> None:
    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        upstream.script = answering(result("c-1", "done"))
        with anyio.fail_after(5):
            async with proxy.stream("POST", request("tools/call", "c-1")) as response:
                assert ("content-length" in response.headers) is (tape == "off")
                assert b"done" in await response.aread()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_refusal_that_comes_as_events_stays_one(
    proxy: Proxied, upstream: ScriptedUpstream, at_once: bool
) -> None:
    event = b"data: %b\n\n" % result("c-1", "no")
    rest = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        head = b"HTTP/1.1 403 No\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        await connection.send(head + chunk if at_once else head)
        if not at_once:
            await rest.wait()
            await connection.send(chunk)

    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(5):
        async with proxy.stream("POST", request("tools/call", "c-1")) as response:
            assert response.status_code == 403
            rest.set()
            assert await response.aread() == event
    assert [frame.envelope.id for frame in await proxy.tape()] == ["init-1", "init-1", "c-1", "c-1"]
