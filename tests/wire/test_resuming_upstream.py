"""What only the upstream knows of: events that the tape has lost, ends that older clients cannot read."""

from __future__ import annotations

import anyio
import pytest

from tests.support.events import Events, message
from tests.support.proxying import Proxied, proxied, request
from tests.support.told import Told, calling, detached, numbers, progress, resuming
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


@pytest.fixture
async def told(upstream: ScriptedUpstream, proxy: Proxied) -> Told:
    await proxy.begin()
    upstream.script = told = Told(ids=True)
    return told


async def ended(proxy: Proxied) -> None:
    """End the streams as the end of their process does: nobody says what is missing."""
    for stream in proxy.service.streams.all():
        stream.drop()
    while len(proxy.service.streams):
        await anyio.lowlevel.checkpoint()


async def lost(proxy: Proxied, told: Told, request_id: str = "c-1") -> None:
    """Call, and lose the stream and what the tape had of its events, as a process does that is killed."""
    before = len(told.streams)
    async with proxy.stream("POST", request("tools/call", request_id)) as response:
        await told.opened(before + 1)
        await told.send(1, progress(1))
        await Events(response).next()
    await detached(proxy)
    frames = [frame for frame in await proxy.tape() if frame.direction == "client" or not frame.position]
    await ended(proxy)
    await proxy.store.delete_frames(proxy.session_id)
    await proxy.store.add_frames(frames)


async def test_after_an_event_that_the_tape_lost_the_upstream_goes_on(proxy: Proxied, told: Told) -> None:
    told.resume = [(2, progress(2))]
    with anyio.fail_after(5):
        await lost(proxy, told)
        async with resuming(proxy, "e-1") as events:
            assert numbers([await events.next()]) == [2]
            told.streams[-1].cut()
            await told.opened(3)
            await told.send(3, result("c-1", "done"))
            assert numbers(await events.rest()) == ["done"]
        async with resuming(proxy, "e-2") as events:  # it is on the tape by now
            assert numbers(await events.rest()) == ["done"]
    assert told.resumed_with == [b"e-1", b"e-2"]


async def test_what_is_lost_for_good_is_said_to_be(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        await lost(proxy, told)
        async with resuming(proxy, "e-1") as events:
            await told.opened(2)
            told.resume = None
            told.streams[-1].cut()
            (ambiguous,) = await events.rest()
    assert message(ambiguous)["id"] is None
    assert message(ambiguous)["error"]["code"] == -31001


async def test_which_of_several_it_was_the_upstream_knows(proxy: Proxied, told: Told) -> None:
    told.resume = [(2, progress(2)), (3, result("c-2", "done"))]
    with anyio.fail_after(5):
        await lost(proxy, told, "c-2")
        async with calling(proxy):
            await told.opened(2)
            async with resuming(proxy, "e-1") as events:
                assert numbers(await events.rest()) == [2, "done"]


async def test_what_the_upstream_refuses_is_refused(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with proxy.stream("GET", **{"Last-Event-ID": "guess"}) as response:
            assert response.status_code == 405
    assert len(proxy.service.streams) == 0


async def test_the_answer_names_its_request_where_the_tape_has_forgotten_it(
    upstream: ScriptedUpstream,
) -> None:
    async with proxied(upstream.url, tape_frames=2) as proxy:
        await proxy.begin()
        upstream.script = told = Told()
        with anyio.fail_after(5):
            async with calling(proxy) as events:
                await told.opened(1)
                for number in range(1, 5):
                    await told.send(number, progress(number))
                newest = [await events.next() for _ in range(4)][-1]
            assert newest is not None
            await detached(proxy)
            await ended(proxy)
            async with resuming(proxy, newest.id) as events:
                (ambiguous,) = await events.rest()
            assert message(ambiguous)["id"] == "c-1"


async def test_an_upstream_that_polls_is_polled_for_a_client_that_does_not(
    upstream: ScriptedUpstream,
) -> None:
    async with proxied(upstream.url, reconnect_after=10) as proxy:
        answer = result("init-1", {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {}})

        async def handshake(received: Received, connection: Connection) -> None:
            await connection.respond(answer, ("Content-Type", "application/json"), ("Mcp-Session-Id", "u-1"))

        upstream.handshake = handshake
        await proxy.begin()
        upstream.handshake, upstream.script = None, (told := Told(ids=True))
        told.resume = [(2, result("c-1", "done"))]
        with anyio.fail_after(5):
            async with calling(proxy) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                await told.streams[0].end_stream()
                told.streams[0].writer.close()
                assert numbers(await events.rest()) == [1, "done"]
    assert told.resumed_with == [b"e-1"]


async def test_the_head_of_a_get_stream_is_the_upstreams(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()

    async def stream(received: Received, connection: Connection) -> None:
        await connection.start_stream(
            ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Mcp-Session-Id", "upstream-1"), ("X-Own", "yes")
        )
        await connection.peer_left()

    upstream.script = stream
    with anyio.fail_after(5):
        async with proxy.stream("GET") as first, proxy.stream("GET") as second:
            assert first.headers.get_list("set-cookie") == ["a=1", "b=2"]
            assert first.headers["x-own"] == "yes"
            # They were meant for the one that asked.
            assert "set-cookie" not in second.headers
            for response in (first, second):
                assert response.headers.get_list("mcp-session-id") == [proxy.session_id]
                assert response.headers.get_list("content-type") == ["text/event-stream"]


async def test_what_is_set_by_an_answer_that_comes_on_a_resumed_connection_is_kept(
    proxy: Proxied, told: Told
) -> None:
    told.resume = []
    with anyio.fail_after(5):
        message = request("logging/setLevel", "c-1", {"level": "debug"})
        async with proxy.stream("POST", message) as response:
            events = Events(response)
            await told.opened(1)
            await told.send(1, progress(1))
            await events.next()
            await told.streams[0].chunk(b'id: e-2\ndata: {"jsonrpc":"2.0","cut')
            told.streams[0].cut()
            await told.opened(2)
            await told.send(2, result("c-1", {}))
            assert numbers(await events.rest()) == [{}]
    session = await proxy.store.get_session(proxy.session_id)
    assert session is not None
    assert session.log_level == "debug"
