"""The tape: what is recorded of a session, in order, and what is not."""

from __future__ import annotations

import gzip
import json

import pytest

from shadowcat_stores import GET_STREAM
from tests.support.proxying import Proxied, proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


async def answer_with_progress(received: Received, connection: Connection) -> None:
    if received.method == "GET":
        await connection.start_stream()
        await connection.chunk(
            b'id: g-1\ndata: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
        )
        await connection.end_stream()
        return
    await connection.start_stream()
    await connection.chunk(b": hello\n\nretry: 10\nid: p-0\ndata: \n\n")
    await connection.chunk(b'id: p-1\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n')
    await connection.chunk(b"id: p-2\ndata: " + result(received.message["id"], {}) + b"\n\n")
    await connection.end_stream()


async def listen(proxy: Proxied) -> None:
    """Take the first event of the GET stream."""
    async with proxy.stream("GET") as response:
        await anext(response.aiter_raw())


async def test_the_tape_holds_the_whole_conversation_in_order(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin()
    await proxy.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
    upstream.script = answer_with_progress
    await proxy.call(request_id="c-1")
    await listen(proxy)
    tape = await proxy.tape()
    assert [frame.seq for frame in tape] == list(range(1, len(tape) + 1))
    assert [
        (frame.direction, frame.envelope.kind, frame.envelope.method, frame.envelope.id) for frame in tape
    ] == [
        ("client", "request", "initialize", "init-1"),
        ("server", "response", None, "init-1"),
        ("client", "notification", "notifications/initialized", None),
        ("client", "request", "tools/call", "c-1"),
        ("server", "other", None, None),
        ("server", "notification", "notifications/progress", None),
        ("server", "response", None, "c-1"),
        ("server", "notification", "notifications/tools/list_changed", None),
    ]
    streamed = [(frame.position, frame.event_id) for frame in tape if frame.position]
    assert streamed == [(1, "p-0"), (2, "p-1"), (3, "p-2"), (1, "g-1")]
    post_stream = tape[4].stream
    assert post_stream not in (None, GET_STREAM)
    assert tape[7].stream == GET_STREAM
    assert json.loads(tape[6].envelope.raw) == {"jsonrpc": "2.0", "id": "c-1", "result": {}}


async def test_last_event_ids_are_kept_per_stream(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    upstream.script = answer_with_progress
    await proxy.call()
    await listen(proxy)
    tape = await proxy.tape()
    assert await proxy.store.get_last_event_id(proxy.session_id) == "g-1"
    assert await proxy.store.get_last_event_id(proxy.session_id, stream="no-such-stream") is None
    post_stream = next(frame.stream for frame in tape if frame.event_id == "p-2")
    assert post_stream is not None
    assert await proxy.store.get_last_event_id(proxy.session_id, stream=post_stream) == "p-2"


async def test_a_batch_is_recorded_as_its_messages(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        body = b"[" + b",".join(result(each["id"], {}) for each in received.message) + b"]"
        await connection.respond(body, ("Content-Type", "application/json"))

    await proxy.begin()
    upstream.script = script
    await proxy.post([request("ping", 1), request("ping", 2)])
    assert [(frame.direction, frame.envelope.id) for frame in (await proxy.tape())[2:]] == [
        ("client", 1),
        ("client", 2),
        ("server", 1),
        ("server", 2),
    ]
    assert len(upstream.forwarded) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_gzip_is_recorded_in_plain(proxy: Proxied, upstream: ScriptedUpstream, stream: bool) -> None:
    async def script(received: Received, connection: Connection) -> None:
        plain = result(1, {"zipped": True})
        media = "text/event-stream" if stream else "application/json"
        body = gzip.compress(b"data: " + plain + b"\n\n" if stream else plain)
        await connection.respond(body, ("Content-Type", media), ("Content-Encoding", "gzip"))

    await proxy.begin()
    upstream.script = script
    await proxy.call()
    assert (await proxy.tape())[-1].envelope.raw == result(1, {"zipped": True})


async def test_other_media_are_not_recorded(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"oops", ("Content-Type", "text/plain"), status="500 Internal Server Error")

    await proxy.begin()
    upstream.script = script
    await proxy.call()
    assert (await proxy.tape())[-1].direction == "client"


async def test_tape_off_records_nothing(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, tape="off") as proxy:
        await proxy.begin()
        upstream.script = answer_with_progress
        await proxy.call()
        assert await proxy.tape() == []


async def test_window_keeps_the_newest_and_full_keeps_all(upstream: ScriptedUpstream) -> None:
    for tape, kept in (("window", 4), ("full", 12)):
        async with proxied(upstream.url, tape=tape, tape_frames=4) as proxy:
            await proxy.begin()
            for number in range(5):
                await proxy.call(request_id=number)
            frames = await proxy.tape()
            assert [frame.seq for frame in frames] == list(range(13 - kept, 13))


@pytest.mark.parametrize("media", ["json", "sse"])
async def test_with_no_window_a_message_is_in_the_store_before_it_is_forwarded(
    upstream: ScriptedUpstream, media: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        # The client's own message is in the tape before the upstream gets it.
        seen.append([frame.envelope.id for frame in await proxy.store.get_frames(proxy.session_id)])
        body = result(7, {})
        if media == "json":
            await connection.respond(body, ("Content-Type", "application/json"))
        else:
            await connection.respond(b"data: " + body + b"\n\n", ("Content-Type", "text/event-stream"))

    seen: list[list[object]] = []
    async with proxied(upstream.url, record_window=0) as proxy:
        await proxy.begin()
        upstream.script = script
        async with proxy.stream("POST", request("tools/call", 7)) as response:
            async for _ in response.aiter_raw():
                seen.append([frame.envelope.id for frame in await proxy.store.get_frames(proxy.session_id)])
                break
    assert seen == [["init-1", "init-1", 7], ["init-1", "init-1", 7, 7]]


async def test_a_message_over_the_limit_passes_unrecorded(upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(result(1, "x" * 2000), ("Content-Type", "application/json"))

    async with proxied(upstream.url, max_message_bytes=1000) as proxy:
        await proxy.begin()
        upstream.script = script
        assert (await proxy.call()).json()["result"] == "x" * 2000
        assert (await proxy.tape())[-1].direction == "client"
