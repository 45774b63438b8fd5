"""A client that lost its connection comes back, gets what it missed, and then the stream itself."""

from __future__ import annotations

import anyio
import pytest

from shadowcat.sse import SSEBlock
from tests.support.events import Events, message
from tests.support.plain import plain_http
from tests.support.proxying import Proxied, proxied, request
from tests.support.told import (
    POST,
    Told,
    attached,
    calling,
    cancelled,
    detached,
    numbers,
    progress,
    recorded,
    resuming,
)
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


@pytest.fixture
async def told(upstream: ScriptedUpstream, proxy: Proxied) -> Told:
    await proxy.begin()
    upstream.script = told = Told()
    return told


@pytest.mark.parametrize("ids", [False, True])
async def test_what_was_missed_comes_first_then_the_stream_to_its_answer(
    proxy: Proxied, told: Told, ids: bool
) -> None:
    told.ids = ids
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            first = await events.next()
        assert first is not None
        assert first.id is not None
        assert (first.id == "e-1") is ids
        await detached(proxy)
        await told.send(2, progress(2))
        await recorded(proxy, 2)
        async with resuming(proxy, first.id) as events:
            assert numbers([await events.next()]) == [2]
            await told.send(3, progress(3))
            assert numbers([await events.next()]) == [3]
            await told.send(4, result("c-1", "done"))
            await told.streams[0].end_stream()
            assert numbers(await events.rest()) == ["done"]
    assert len(told.asked) == 1
    assert len(proxy.service.streams) == 0


async def test_a_stream_that_ended_meanwhile_is_on_the_tape(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            first = await events.next()
        assert first is not None
        await detached(proxy)
        await told.send(2, progress(2))
        await told.send(3, result("c-1", "done"))
        await told.streams[0].end_stream()
        while len(proxy.service.streams):
            await anyio.lowlevel.checkpoint()
        blocks: list[SSEBlock] = []
        for _ in range(2):  # it stays there
            async with resuming(proxy, first.id) as events:
                blocks = await events.rest()
            assert numbers(blocks) == [2, "done"]
            assert [block.id for block in blocks] == [f"{first.id[:-2]}-2", f"{first.id[:-2]}-3"]  # type: ignore[index]
        async with resuming(proxy, blocks[-1].id) as events:
            assert await events.rest() == []


async def test_a_client_that_waits_gets_an_id_to_come_back_with(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            prime = await events.next()
        assert prime is not None
        assert (prime.data, prime.retry) == (b"", 1000)
        assert prime.id is not None
        assert prime.id.endswith("-0")
        await detached(proxy)
        await told.send(1, result("c-1", "done"))
        await told.streams[0].end_stream()
        async with resuming(proxy, prime.id) as events:
            assert numbers(await events.rest()) == ["done"]


async def test_a_client_of_an_older_revision_gets_no_event_without_data(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client of the newer revision would have its id with the head of the response.
    monkeypatch.setattr("shadowcat.live_responses._SOON", 0.0)
    async with proxied(upstream.url) as proxy:
        answer = result("init-1", {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {}})

        async def handshake(received: Received, connection: Connection) -> None:
            await connection.respond(answer, ("Content-Type", "application/json"), ("Mcp-Session-Id", "u-1"))

        upstream.handshake = handshake
        await proxy.begin()
        upstream.handshake, upstream.script = None, (told := Told())
        with anyio.fail_after(5):
            async with calling(proxy) as events:
                await told.opened(1)
                await told.send(1, result("c-1", "done"))
                await told.streams[0].end_stream()
                assert numbers(await events.rest()) == ["done"]


async def test_the_newer_of_two_takes_over(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with calling(proxy) as original:
            await told.opened(1)
            await told.send(1, progress(1))
            first = await original.next()
            assert first is not None
            async with resuming(proxy, first.id) as older:
                await told.send(2, progress(2))
                assert numbers([await older.next()]) == [2]
                assert await original.next() is None
                async with resuming(proxy, first.id) as newer:
                    assert numbers([await newer.next()]) == [2]
                    await told.send(3, result("c-1", "done"))
                    await told.streams[0].end_stream()
                    assert numbers(await newer.rest()) == ["done"]
                    assert await older.next() is None
    assert len(told.asked) == 1


async def test_reading_ahead_has_a_limit(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, adopt_events=3) as proxy:
        await proxy.begin()
        upstream.script = told = Told()
        with anyio.fail_after(5):
            async with calling(proxy) as events:
                await told.opened(1)
                await told.send(0, progress(0))
                first = await events.next()
            assert first is not None
            await detached(proxy)
            for number in range(1, 20):
                await told.send(number, progress(number))
                await anyio.lowlevel.checkpoint()
            await recorded(proxy, 4)
            (stream,) = proxy.service.streams.all()
            held = stream.tap.position
            assert held < 20
            await told.send(20, result("c-1", "done"))
            await told.streams[0].end_stream()
            async with resuming(proxy, first.id) as events:
                assert numbers(await events.rest()) == [*range(1, 20), "done"]


async def test_a_hung_stream_is_ended_and_said_to_be_lost(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, adopt_seconds=0.05) as proxy:
        await proxy.begin()
        upstream.script = told = Told()
        with anyio.fail_after(5):
            async with calling(proxy) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
            await told.left.wait()
            assert first is not None
            async with resuming(proxy, first.id) as events:
                (lost,) = await events.rest()
    assert message(lost)["id"] == "c-1"
    assert message(lost)["error"]["code"] == -31001
    assert message(lost)["error"]["data"] == {"reason": "ambiguous_delivery"}
    assert lost.id == f"{first.id[:-2]}-2"  # type: ignore[index]


# -- what is not shown --------------------------------------------------------------------------------------


async def test_another_session_sees_nothing(proxy: Proxied, told: Told, upstream: ScriptedUpstream) -> None:
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            first = await events.next()
        assert first is not None
        assert first.id is not None
        other = Proxied(proxy.service, proxy.store, proxy.base, proxy.client)
        await other.begin()
        answers = {first.id: 400, f"{first.id}0": 400, "s.abcdefgh-1": 400, "guess-1": 405, "-": 405}
        for event_id, status in answers.items():
            async with other.stream("GET", **{"Last-Event-ID": event_id}) as response:
                # Of what nobody here has made, the upstream is asked.
                assert response.status_code == status
                assert b"progress" not in await response.aread()
        await told.send(2, result("c-1", "done"))
        await told.streams[0].end_stream()


async def test_another_principal_sees_nothing(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url) as proxy:
        await proxy.begin(Authorization="Bearer alice")
        upstream.script = told = Told()
        with anyio.fail_after(5):
            async with calling(proxy, Authorization="Bearer alice") as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
            assert first is not None
            assert first.id is not None
            for headers in ({}, {"Authorization": "Bearer mallory"}):
                async with proxy.stream("GET", **{"Last-Event-ID": first.id}, **headers) as response:
                    assert response.status_code == 404
            await told.send(2, result("c-1", "done"))
            await told.streams[0].end_stream()
            async with resuming(proxy, first.id, Authorization="Bearer alice") as events:
                assert numbers(await events.rest()) == ["done"]
    assert [each.method for each in told.asked] == ["POST"]


# -- where the upstream breaks ------------------------------------------------------------------------------


async def test_a_broken_stream_is_resumed_upstream_and_the_client_sees_nothing(
    proxy: Proxied, told: Told
) -> None:
    told.ids = True
    told.resume = [(1, progress(1)), (2, progress(2))]  # one of them again
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            assert numbers([await events.next()]) == [1]
            await told.streams[0].chunk(b'id: e-2\ndata: {"jsonrpc":"2.0","cut')
            told.streams[0].cut()
            assert numbers([await events.next()]) == [2]
            await told.send(3, result("c-1", "done"))
            # The server leaves the stream open after its answer; the proxy ends it.
            assert numbers(await events.rest()) == ["done"]
    assert told.resumed_with == [b"e-1"]
    assert proxy.service.counters.upstream_requests == {"forward": 2, "recover": 1}
    assert len(proxy.service.streams) == 0


async def test_where_it_cannot_be_resumed_the_client_is_told(proxy: Proxied, told: Told) -> None:
    told.ids = True
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            told.streams[0].cut()
            assert numbers([await events.next()]) == [1]
            (lost,) = await events.rest()
    assert message(lost)["error"]["code"] == -31001
    assert told.resumed_with == [b"e-1"]


async def test_a_client_that_comes_back_for_a_stream_nobody_reads_has_it_resumed_upstream(
    proxy: Proxied, told: Told
) -> None:
    """A server that polls: it ends the stream before the answer, and the client comes back."""
    told.ids = True
    told.resume = [(2, progress(2))]
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            await told.streams[0].chunk(b"retry: 20\n\n")
            await told.send(1, progress(1))
            await told.streams[0].end_stream()
            told.streams[0].writer.close()
            *others, first = await events.rest()
        assert [block.retry for block in others] == [20]
        async with resuming(proxy, first.id) as events:
            assert numbers([await events.next()]) == [2]
            await told.send(3, result("c-1", "done"))
            assert numbers(await events.rest()) == ["done"]
    assert told.resumed_with == [b"e-1"]


# -- the standalone stream ----------------------------------------------------------------------------------


async def test_a_second_get_takes_over_from_the_first(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        async with resuming(proxy, None) as older:
            await told.opened(1)
            await told.send(1, progress(1))
            assert numbers([await older.next()]) == [1]
            async with resuming(proxy, None) as newer:
                await told.send(2, progress(2))
                assert numbers([await newer.next()]) == [2]
                assert await older.next() is None
    assert len(told.asked) == 1


async def test_what_came_while_nobody_listened_is_delivered(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        async with resuming(proxy, None):
            await told.opened(1)
            await attached(proxy)
        await detached(proxy)
        await told.send(1, progress(1))
        await recorded(proxy, 1)
        async with resuming(proxy, None) as events:
            first = await events.next()
            assert numbers([first]) == [1]
        await detached(proxy)
        await told.send(2, progress(2))
        await recorded(proxy, 2)
        async with resuming(proxy, None) as events:
            assert numbers([await events.next()]) == [2]
        assert first is not None
        async with resuming(proxy, first.id) as events:  # it saw less than was sent
            assert numbers([await events.next()]) == [2]
    assert len(told.asked) == 1


async def test_a_refusal_is_remembered(proxy: Proxied, told: Told) -> None:
    for _ in range(3):
        async with proxy.stream("GET") as response:
            assert response.status_code == 405
    assert len(told.asked) == 1


async def test_it_survives_a_restart_of_the_upstream(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        async with resuming(proxy, None) as events:
            await told.opened(1)
            await told.send(1, progress(1))
            told.streams[0].cut()
            await told.opened(2)
            await told.send(2, progress(2))
            assert numbers([await events.next(), await events.next()]) == [1, 2]
    assert proxy.service.counters.upstream_requests["recover"] == 1


async def test_a_storm_opens_one(proxy: Proxied, told: Told, upstream: ScriptedUpstream) -> None:
    told.resume = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, plain_http() as client:
            storm = Proxied(proxy.service, proxy.store, proxy.base, client, session_id=proxy.session_id)
            ended: list[int] = []

            async def come(number: int) -> None:
                async with resuming(storm, None) as events:
                    await events.rest()
                ended.append(number)

            for number in range(50):
                tasks.start_soon(come, number)
            while len(ended) < 49:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert len(told.asked) == 1


async def test_a_silent_stream_is_kept_alive(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, stream_keepalive=0.05) as proxy:
        await proxy.begin()
        upstream.script = told = Told()
        told.resume = []
        with anyio.fail_after(5):
            for method, sent in (("GET", None), ("POST", POST)):
                async with proxy.stream(method, sent) as response:
                    got = b""
                    async for chunk in response.aiter_raw():
                        got += chunk
                        if got.count(b":\n\n") == 3:
                            break


# -- giving up ----------------------------------------------------------------------------------------------


async def test_a_cancelled_request_is_not_missed(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with calling(proxy):
            await told.opened(1)
        await detached(proxy)
        assert (await proxy.post(cancelled())).status_code == 202
        await told.left.wait()
    assert len(proxy.service.streams) == 0


async def test_a_request_that_was_cancelled_goes_on_only_while_somebody_listens(
    proxy: Proxied, told: Told
) -> None:
    with anyio.fail_after(5):
        async with calling(proxy) as events:
            await told.opened(1)
            assert (await proxy.post(cancelled())).status_code == 202
            await told.send(1, progress(1))
            assert numbers([await events.next()]) == [1]
            assert not told.left.is_set()
        await told.left.wait()
    assert len(proxy.service.streams) == 0


async def test_a_cancel_of_something_else_ends_nothing(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        async with calling(proxy) as events, resuming(proxy, None):
            await told.opened(2)
            prime = await events.next()
        assert prime is not None
        await detached(proxy)
        assert (await proxy.post(cancelled("another"))).status_code == 202
        async with resuming(proxy, prime.id) as events, resuming(proxy, None) as standalone:
            await told.send(1, progress(1))
            assert numbers([await standalone.next()]) == [1]
            await told.streams[0].chunk(b"data: " + result("c-1", "done") + b"\n\n")
            await told.streams[0].end_stream()
            assert numbers(await events.rest()) == ["done"]
    assert len(told.streams) == 2


async def test_a_cancel_that_cannot_be_read_is_of_no_request(proxy: Proxied, told: Told) -> None:
    with anyio.fail_after(5):
        async with proxy.stream("POST", request("tools/call", None)) as response:
            prime = await Events(response).next()
        assert prime is not None
        await detached(proxy)
        assert (await proxy.post(cancelled({}))).status_code == 202
        await told.send(1, result(None, "done"))
        await told.streams[0].end_stream()
        async with resuming(proxy, prime.id) as events:
            assert numbers(await events.rest()) == ["done"]


async def test_deleting_the_session_ends_its_streams(proxy: Proxied, told: Told) -> None:
    told.resume = []
    with anyio.fail_after(5):
        async with calling(proxy) as events, resuming(proxy, None) as standalone:
            await told.opened(2)

            async with proxy.stream("DELETE") as response:
                assert response.status_code == 200
            assert [block.data for block in await events.rest()] in ([], [b""])
            assert await standalone.rest() == []
