"""The revisions with sessions (2025-03-26 to 2025-11-25), and clients that find out which one is spoken."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import pytest

from shadowcat.pauses import Pauses
from shadowcat.sse import SSEBlock
from tests.support.events import Events, message
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.upstream import SESSION, Connection, Received, ScriptedUpstream, echo, result

PROBE = request("server/discover", 1, {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}})
PROBES: dict[str, tuple[Any, dict[str, str]]] = {
    "server/discover": (PROBE, {"MCP_Protocol_Version": "2026-07-28", "Mcp_Method": "server/discover"}),
    "server/discover, said in the body alone": (PROBE, {}),
    "initialize": (INITIALIZE, {}),
}
JSON = ("Content-Type", "application/json")
REFUSALS: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "a modern server": (
        "400 Bad Request",
        b'{"jsonrpc":"2.0","id":"init-1","error":{"code":-32022,"message":"no","data":{"supported":["2026-07-28"]}}}',
        [JSON],
    ),
    "a server with sessions": (
        "400 Bad Request",
        b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"Server not initialized"},"id":null}',
        [JSON],
    ),
    "a server of HTTP+SSE": ("404 Not Found", b"Cannot POST /mcp\n", [("Content-Type", "text/html")]),
    "a server of HTTP+SSE on the same path": ("405 Method Not Allowed", b"", [("Allow", "GET")]),
    "a server that wants a token": ("401 Unauthorized", b"", [("WWW-Authenticate", 'Bearer scope="a"')]),
    "a server in trouble": ("503 Service Unavailable", b"later", [("Retry-After", "3")]),
    "an error that says 200": (
        "200 OK",
        b'{"id":"init-1" ,"jsonrpc":"2.0","error":{"code":-32601,"message":"Method not found"}}',
        [JSON],
    ),
}


@pytest.mark.parametrize(("status", "body", "headers"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize(("probe", "said"), PROBES.values(), ids=PROBES)
async def test_what_answers_a_probe_passes_bit_for_bit(
    proxy: Proxied,
    upstream: ScriptedUpstream,
    probe: Any,
    said: dict[str, str],
    status: str,
    body: bytes,
    headers: list[tuple[str, str]],
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(body, *headers, status=status)

    upstream.handshake = refuse
    response = await proxy.post(probe, **said)
    assert (response.status_code, response.content) == (int(status[:3]), body)
    sent = [*headers, ("Content-Length", str(len(body)))]
    assert response.headers.raw == [(name.lower().encode(), value.encode()) for name, value in sent]
    assert len(upstream.received) == 1
    assert await proxy.store.count_sessions() == 0


GETS: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "a server without": ("405 Method Not Allowed", b"", [("Allow", "POST")]),
    "a server with sessions": (
        "400 Bad Request",
        b'{"jsonrpc":"2.0","error":{"code":-32000},"id":null}',
        [JSON],
    ),
    "a page": ("404 Not Found", b"<h1>no</h1>", [("Content-Type", "text/html")]),
}


@pytest.mark.parametrize(("status", "body", "headers"), GETS.values(), ids=GETS)
async def test_a_get_of_a_client_that_looks_for_an_older_server_reaches_it(
    proxy: Proxied,
    upstream: ScriptedUpstream,
    status: str,
    body: bytes,
    headers: list[tuple[str, str]],
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(body, *headers, status=status)

    upstream.script = script
    async with proxy.stream("GET", Accept="text/event-stream") as response:
        assert (response.status_code, await response.aread()) == (int(status[:3]), body)
    sent = [*headers, ("Content-Length", str(len(body)))]
    assert response.headers.raw == [(name.lower().encode(), value.encode()) for name, value in sent]
    assert [each.method for each in upstream.received] == ["GET"]
    assert await proxy.store.count_sessions() == 0


NO_SESSION_REVISIONS = ("banana", "v3", "2026-7-28", "1999-01-01")


@pytest.mark.parametrize("version", NO_SESSION_REVISIONS)
@pytest.mark.parametrize("has_session", [True, False])
async def test_a_version_that_is_none_is_the_servers_to_refuse(
    proxy: Proxied, upstream: ScriptedUpstream, version: str, has_session: bool
) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"Unsupported protocol version"}}'

    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(body, JSON, status="400 Bad Request")

    if has_session:
        await proxy.begin()
    upstream.script = refuse
    response = await proxy.post(request("ping"), MCP_Protocol_Version=version)
    assert (response.status_code, response.content) == (400, body)
    assert response.headers.get("mcp-session-id") == (proxy.session_id or None)
    (received,) = upstream.forwarded
    assert received.header(b"mcp-protocol-version") == version.encode()
    assert received.header(b"mcp-session-id") == (SESSION.encode() if has_session else None)


@pytest.mark.parametrize("version", [None, "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_the_version_header_is_as_the_client_sent_it(
    proxy: Proxied, upstream: ScriptedUpstream, version: str | None
) -> None:
    """Neither added, nor changed to what was agreed on; nor is the session's part dropped for it."""
    await proxy.begin()
    assert upstream.received[-1].header(b"mcp-protocol-version") is None
    said = {} if version is None else {"MCP_Protocol_Version": version}
    assert (await proxy.post(request("ping"), **said)).status_code == 200
    expected = None if version is None else version.encode()
    assert upstream.received[-1].header(b"mcp-protocol-version") == expected
    assert upstream.received[-1].header(b"mcp-session-id") == SESSION.encode()


async def test_the_get_stream_and_a_resumption_are_asked_for_in_the_clients_revision(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin()
    for number, extra in enumerate(({}, {"Last-Event-ID": "not-ours-7"}), start=1):
        async with proxy.stream("GET", **{"MCP-Protocol-Version": "2025-06-18"}, **extra) as response:
            assert response.status_code == 405
        assert len(upstream.forwarded) == number
        assert upstream.received[-1].header(b"mcp-protocol-version") == b"2025-06-18"
        assert upstream.received[-1].header(b"mcp-session-id") == SESSION.encode()


async def test_an_event_id_that_is_the_upstreams_goes_there_as_it_is(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b"id: next\ndata: " + result(1, {}) + b"\n\n")
        await connection.end_stream()

    await proxy.begin()
    upstream.script = script
    odd = "e/1 =?;~%20"
    async with proxy.stream("GET", **{"Last-Event-ID": odd}) as response:
        assert response.status_code == 200
        assert b"id: next\n" in await response.aread()
    assert upstream.received[-1].header(b"last-event-id") == odd.encode()


async def test_a_refused_get_is_refused_in_the_upstreams_words_each_time(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(b"no stream", ("Allow", "POST, DELETE"), status="405 Method Not Allowed")

    await proxy.begin()
    upstream.script = refuse
    for _ in range(2):
        async with proxy.stream("GET") as response:
            answer = (response.status_code, response.headers["allow"], await response.aread())
            assert answer == (405, "POST, DELETE", b"no stream")
    assert len(upstream.forwarded) == 1


async def first_message(events: Events) -> SSEBlock:
    """Return the first event that carries one: others may only say where to come back."""
    while True:
        block = await events.next()
        assert block is not None
        if block.data:
            return block


async def test_a_resumption_brings_its_own_stream_only(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    streams: dict[str, Connection] = {}
    opened = anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        streams[received.message["id"]] = connection
        if len(streams) == 2:
            opened.set()
        await connection.peer_left()

    async def say(stream: str, text: bytes) -> None:
        await streams[stream].chunk(b'data: {"jsonrpc":"2.0","method":"notifications/%b"}\n\n' % text)

    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(5):
        async with (
            proxy.stream("POST", request("tools/call", "a")) as first,
            proxy.stream("POST", request("tools/call", "b")) as second,
        ):
            await opened.wait()
            await say("a", b"a1")
            await say("b", b"b1")
            mine = await first_message(Events(first))
            assert message(mine)["method"] == "notifications/a1"
            assert message(await first_message(Events(second)))["method"] == "notifications/b1"
        await say("b", b"b2")
        await say("a", b"a2")
        for name, stream in streams.items():
            await stream.chunk(b"data: " + result(name, {}) + b"\n\n")
            await stream.end_stream()
        assert mine.id is not None
        async with proxy.stream("GET", **{"Last-Event-ID": mine.id}) as response:
            missed = [message(block) for block in await Events(response).rest()]
    assert [each.get("method", each.get("id")) for each in missed] == ["notifications/a2", "a"]


async def test_the_servers_retry_is_waited_for_before_its_stream_is_taken_up(
    proxy: Proxied, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def wait(pauses: Pauses, at_least: float) -> bool:
        waited.append(at_least)
        return True

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        if received.method == "POST":
            await connection.chunk(b'retry: 7000\nid: e-1\ndata: {"jsonrpc":"2.0","method":"x"}\n\n')
            connection.cut()
        else:
            await connection.chunk(b"id: e-2\ndata: " + result(1, {}) + b"\n\n")

    monkeypatch.setattr(Pauses, "wait", wait)
    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(5):
        assert b"id: e-2\n" in (await proxy.call()).content
    assert upstream.received[-1].header(b"last-event-id") == b"e-1"
    assert waited == [7.0]


async def test_nothing_is_added_to_what_the_client_accepts(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    """`Accept` where none was sent would hide from the server that it has to refuse."""
    await proxy.begin()
    sent = raw_request(proxy.url, "POST", request("ping"), Mcp_Session_Id=proxy.session_id)
    without = b"\r\n".join(line for line in sent.split(b"\r\n") if not line.startswith(b"Accept"))
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(without)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    names = {name.lower() for name, _ in upstream.received[-1].headers}
    assert names == {b"host", b"content-type", b"content-length", b"mcp-session-id"}


async def test_blanks_around_a_headers_value_are_no_part_of_it(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="Bearer alice")
    sent = {
        "Mcp_Session_Id": proxy.session_id + " \t",
        "Authorization": "  Bearer alice  ",
        "Mcp_Name": " a b ",
    }
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, "POST", request("ping"), **sent))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert upstream.received[-1].header(b"authorization") == b"Bearer alice"
    assert upstream.received[-1].header(b"mcp-name") == b"a b"


async def test_a_stream_that_has_begun_may_be_silent_for_as_long_as_it_likes(
    upstream: ScriptedUpstream,
) -> None:
    """The time allowed for an answer runs out for another request meanwhile."""
    go_on = anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if received.message["id"] == "never":
            await connection.peer_left()
            return
        await connection.start_stream()
        await go_on.wait()
        await connection.chunk(b"data: " + result("silent", {}) + b"\n\n")
        await connection.end_stream()

    async with proxied(upstream.url, response_timeout=0.5) as proxy:
        await proxy.begin()
        upstream.script = script
        with anyio.fail_after(5):
            async with proxy.stream("POST", request("tools/call", "silent")) as response:
                assert (await proxy.call(request_id="never")).status_code == 504
                go_on.set()
                (*_, last) = await Events(response).rest()
    assert message(last)["result"] == {}


async def test_a_notification_is_answered_without_a_body(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    for said in ({"method": "notifications/initialized"}, {"id": 3, "result": {}}):
        response = await proxy.post({"jsonrpc": "2.0", **said})
        assert (response.status_code, response.content) == (202, b"")
    assert len(upstream.received) == 3


async def test_credentials_reach_the_upstream_and_no_log(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        if received.message["id"] == "cut":
            connection.cut()
        else:
            await echo(received, connection)

    with caplog.at_level(logging.DEBUG):
        async with proxied(upstream.url) as proxy:
            secret = {"Authorization": "Bearer hush-1", "Cookie": "hush-2", "X_Api_Key": "hush-3"}
            await proxy.begin(**secret)
            upstream.script = script
            await proxy.post(request("tools/call", "cut"), **secret)
            await proxy.post(request("ping"), **secret)
            proxy.session_id = "another"
            await proxy.post(request("ping"), **secret)
    assert upstream.received[-1].header(b"authorization") == b"Bearer hush-1"
    assert "ambiguous" in caplog.text or "lost" in caplog.text
    own = [record for record in caplog.records if record.name.startswith("shadowcat")]
    assert "hush" not in json.dumps([record.getMessage() for record in own])
