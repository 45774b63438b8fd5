"""Revision 2026-07-28: no sessions, nothing added, and a client that leaves has cancelled its request."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat.protocol import META_PROTOCOL_VERSION
from tests.support.proxying import Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.upstream import Connection, Received, ScriptedUpstream, result

MODERN = {"MCP_Protocol_Version": "2026-07-28"}
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
LISTENING = (
    b": hello\r\n\r\n",
    b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged",'
    b'"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"l-1"}}}\n\n',
    b'data: {"jsonrpc":"2.0",\ndata: "method":"notifications/tools/list_changed"}\n\n',
    b": still here\n\n",
)


def headers_of(received: Received, prefix: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers whose names begin so, as they came."""
    pairs = [(name.lower(), value) for name, value in received.headers]
    return [pair for pair in pairs if pair[0].startswith(prefix)]


async def test_routing_headers_pass_unread_unfolded_and_in_order(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    sent = [
        ("Content-Type", "application/json"),
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "=?base64?w7xiZXI=?="),
        ("Mcp-Param-Region", "us-east1"),
        ("mcp-param-region", "eu-west1"),
        ("Mcp-Param-Unheard-Of", "=?base64?%%?="),
        ("Mcp-Something-New", "a, b"),
    ]
    response = await proxy.client.post(
        proxy.url, headers=sent, content=json.dumps(request("tools/call", 1, {"name": "über"}))
    )
    assert response.status_code == 200
    expected = [(name.lower().encode(), value.encode()) for name, value in sent[1:]]
    assert headers_of(upstream.received[-1], b"mcp-") == expected


def about(method: str, **params: Any) -> dict[str, Any]:
    """Return a request with what this revision demands in `_meta`."""
    meta = {META_PROTOCOL_VERSION: "2026-07-28"}
    return request(method, 1, {"_meta": meta} | params)


def sentinel(text: str) -> str:
    return f"=?base64?{b64encode(text.encode()).decode()}?="


CALL, READ, TASK = (
    about("tools/call", name="add"),
    about("resources/read", uri="note://ü"),
    about("tasks/get", taskId="7"),
)
FROM_ANOTHER_TIME = request("tools/call", 1, {"_meta": {META_PROTOCOL_VERSION: "2027-01-01"}})
HIDDEN = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"rm","x":"\\ud800"}}'
CONTRADICTIONS: dict[str, tuple[Any, str, str]] = {
    "another method": (CALL, "Mcp-Method", "tools/list"),
    "in other letters": (CALL, "Mcp-Method", "Tools/Call"),
    "a method is not encoded": (CALL, "Mcp-Method", sentinel("tools/call")),
    "another tool": (CALL, "Mcp-Name", "sub"),
    "another tool, encoded": (CALL, "Mcp-Name", sentinel("sub")),
    "a marker in other letters": (CALL, "Mcp-Name", sentinel("add").replace("base64", "BASE64")),
    "no base64": (CALL, "Mcp-Name", "=?base64?YW!!!Rk=?="),
    "base64 without padding": (CALL, "Mcp-Name", "=?base64?YWR?="),
    "no text": (CALL, "Mcp-Name", "=?base64?/w==?="),
    "half a marker": (CALL, "Mcp-Name", "=?base64?YWRk"),
    "another resource": (READ, "Mcp-Name", "note://u"),
    "not encoded": (READ, "Mcp-Name", "note://\xfc"),
    "another task": (TASK, "Mcp-Name", "8"),
    "another revision": (FROM_ANOTHER_TIME, "MCP-Protocol-Version", "2026-07-28"),
    "behind what readers choke on": (HIDDEN, "Mcp-Name", "ls"),
    "one of a batch": ([CALL, READ], "Mcp-Method", "tools/call"),
}


@pytest.mark.parametrize(("message", "header", "value"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
async def test_headers_that_contradict_the_body_are_refused(
    proxy: Proxied, upstream: ScriptedUpstream, message: Any, header: str, value: str
) -> None:
    content = message if isinstance(message, bytes) else json.dumps(message)
    headers = {"Content-Type": "application/json", "MCP-Protocol-Version": "2026-07-28", header: value}
    sent = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = await proxy.client.post(proxy.url, headers=sent, content=content)
    error = response.json()
    assert (response.status_code, error["error"]["code"]) == (400, -32020)
    assert error["id"] == (None if isinstance(message, list) else 1)
    assert error["error"]["data"] == {"reason": "header_mismatch"}
    assert upstream.received == []


AGREEMENTS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "plain": (CALL, [("Mcp-Method", "tools/call"), ("Mcp-Name", "add")]),
    "names in any letters": (CALL, [("mcp-METHOD", "tools/call"), ("MCP-NAME", "add")]),
    "encoded without need": (CALL, [("Mcp-Name", sentinel("add"))]),
    "a resource": (READ, [("Mcp-Name", sentinel("note://ü"))]),
    "a name that looks encoded": (
        about("prompts/get", name="=?base64?x?="),
        [("Mcp-Name", sentinel("=?base64?x?="))],
    ),
    "a task": (TASK, [("Mcp-Method", "tasks/get"), ("Mcp-Name", "7")]),
    "nothing said twice": (CALL, []),
    "a name where none is mirrored": (about("tools/list"), [("Mcp-Name", "x")]),
    "no params": (request("tools/call"), [("Mcp-Name", "x")]),
    "params that are none": (request("tools/call", 1, ["x"]), [("Mcp-Name", "x")]),
    "a name that is none": (about("tools/call", name=5), [("Mcp-Name", "5")]),
    "_meta that is none": (about("tools/call", _meta=5), [("Mcp-Method", "tools/call")]),
    "a notification": (
        {"jsonrpc": "2.0", "method": "notifications/x"},
        [("Mcp-Method", "notifications/y")],
    ),
    "behind what readers choke on": (HIDDEN, [("Mcp-Name", "rm")]),
    "params that readers choke on": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["\\ud800"]}',
        [("Mcp-Name", "x")],
    ),
}


@pytest.mark.parametrize(("message", "headers"), AGREEMENTS.values(), ids=AGREEMENTS)
async def test_what_does_not_contradict_itself_is_the_servers_to_judge(
    proxy: Proxied, upstream: ScriptedUpstream, message: Any, headers: list[tuple[str, str]]
) -> None:
    """Missing headers, too: the server must refuse them, and its refusal is the client's to see."""
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    always = [("Content-Type", "application/json"), ("MCP-Protocol-Version", "2026-07-28")]
    response = await proxy.client.post(proxy.url, headers=always + headers, content=content)
    assert response.status_code in (200, 202)
    assert [each.body for each in upstream.received] == [content]


async def test_blanks_around_a_value_are_no_part_of_it(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async with raw_client(proxy.url) as (reader, writer):
        writer.write(
            raw_request(proxy.url, "POST", CALL, **MODERN, Mcp_Method="  tools/call ", Mcp_Name="add\t")
        )
        assert (await reader.readline()).split()[1] == b"200"
    assert upstream.received[-1].header(b"mcp-name") == b"add"


async def test_in_a_session_nothing_is_held_against_the_body(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin()
    response = await proxy.post(CALL, Mcp_Method="tools/list", Mcp_Name="sub")
    assert response.status_code == 200
    assert upstream.forwarded[-1].header(b"mcp-name") == b"sub"


async def test_what_belongs_to_sessions_is_ignored(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    stale = {"Mcp_Session_Id": "of-an-older-life", "Last_Event_ID": "s.abcdefgh-1"}
    response = await proxy.post(request("tools/list"), **MODERN, **stale)
    assert response.status_code == 200
    assert "mcp-session-id" not in response.headers
    assert upstream.received[-1].header(b"mcp-session-id") is None
    assert await proxy.sessions() == []


async def test_a_session_id_that_a_server_gives_all_the_same_is_not_handed_on(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    """A client that kept it would take the next server for the one that it has a session with."""

    async def minting(received: Received, connection: Connection) -> None:
        body = result(received.message["id"], {})
        await connection.respond(body, ("Content-Type", "application/json"), ("Mcp-Session-Id", "u-1"))

    upstream.script = minting
    response = await proxy.post(request("tools/list"), **MODERN)
    assert response.status_code == 200
    assert "mcp-session-id" not in response.headers
    assert await proxy.sessions() == []


ONE_WAY: dict[str, Any] = {
    "a notification": {"jsonrpc": "2.0", "method": "notifications/x"},
    "a cancellation": {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1},
    },
    "a response": {"jsonrpc": "2.0", "id": 1, "result": {}},
    "a batch": [request("tools/list", 1), request("tools/list", 2)],
}


@pytest.mark.parametrize("status", ["202 Accepted", "400 Bad Request"])
@pytest.mark.parametrize("message", ONE_WAY.values(), ids=ONE_WAY)
async def test_what_is_no_request_is_the_servers_to_take_or_refuse(
    proxy: Proxied, upstream: ScriptedUpstream, message: Any, status: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(status=status)

    upstream.script = script
    response = await proxy.post(message, **MODERN)
    assert (response.status_code, response.content) == (int(status[:3]), b"")
    assert [each.message for each in upstream.received] == [message]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_get_and_delete_are_the_upstreams_to_refuse(
    proxy: Proxied, upstream: ScriptedUpstream, method: str
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(b"POST only", ("Allow", "POST"), status="405 Method Not Allowed")

    upstream.script = refuse
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Session-Id": "stale", "Accept": "text/event-stream"}
    response = await proxy.client.request(method, proxy.url, headers=headers)
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"POST only")
    assert [each.method for each in upstream.received] == [method]


ANSWERS: dict[str, tuple[str, int, Any]] = {
    "unknown method": ("404 Not Found", -32601, None),
    "header mismatch": ("400 Bad Request", -32020, None),
    "missing capability": ("400 Bad Request", -32021, {"requiredCapabilities": {"sampling": {}}}),
    "unsupported version": ("400 Bad Request", -32022, {"supported": ["2025-11-25"]}),
    "missing _meta": ("400 Bad Request", -32602, None),
    "an error in a 200": ("200 OK", -32602, {"uri": "x://y"}),
}


@pytest.mark.parametrize(("status", "code", "data"), ANSWERS.values(), ids=ANSWERS)
async def test_errors_pass_bit_for_bit(
    proxy: Proxied, upstream: ScriptedUpstream, status: str, code: int, data: Any
) -> None:
    error = {"code": code, "message": "no"} | ({} if data is None else {"data": data})
    body = json.dumps({"error": error, "id": 1, "jsonrpc": "2.0"}, indent=1).encode()

    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(body, ("Content-Type", "application/json"), status=status)

    upstream.script = refuse
    response = await proxy.post(request("tools/call"), **MODERN)
    assert (response.status_code, response.content) == (int(status[:3]), body)
    assert response.headers["content-type"] == "application/json"
    assert len(upstream.received) == 1


async def test_a_stream_gets_no_ids_and_no_priming(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream(
            ("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no")
        )
        for part in LISTENING:
            await connection.chunk(part)
        await connection.end_stream()

    upstream.script = script
    response = await proxy.post(request("subscriptions/listen", "l-1"), **MODERN)
    assert response.content == b"".join(LISTENING)
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"


async def test_a_stream_that_breaks_looks_broken_and_is_not_asked_for_again(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b'id: 1\ndata: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n')
        connection.writer.close()

    upstream.script = script
    with pytest.raises(httpx2.RemoteProtocolError):
        await proxy.post(request("tools/call"), **MODERN)
    assert len(upstream.received) == 1


HOLDS = {
    "before the headers": None,
    "before the first event": ("text/event-stream", b""),
    "between events": ("text/event-stream", b"data: x\n\n"),
    "in JSON": ("application/json", b'{"jsonrpc":'),
}


@pytest.mark.parametrize("tape", ["off", "window"])
@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
async def test_a_client_that_leaves_has_cancelled(
    upstream: ScriptedUpstream, hold: tuple[str, bytes] | None, tape: str
) -> None:
    """With all settings at their defaults, under which a client that leaves a session cancels nothing."""
    begun, left = anyio.Event(), anyio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if hold is not None:
            await connection.start_stream(media=hold[0])
            if hold[1]:
                await connection.chunk(hold[1])
        begun.set()
        await connection.peer_left()
        left.set()

    upstream.script = script
    async with proxied(upstream.url, tape=tape) as proxy:
        with anyio.fail_after(5):
            async with raw_client(proxy.url) as (reader, writer):
                writer.write(raw_request(proxy.url, "POST", request("tools/call"), **MODERN))
                await begun.wait()
                if hold is not None:
                    await reader.readuntil(b"\r\n\r\n")
            await left.wait()
    assert len(upstream.received) == 1


async def test_a_retry_with_its_state_is_a_request_like_any_other(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    """What a multi round-trip request carries is neither read nor kept: any instance can take the retry."""
    state = {"requestState": "\u00e9\u0000 opaque", "inputResponses": {"q": {"action": "accept"}}}
    for number in (1, 2):
        body = json.dumps(request("tools/call", number, {"name": "t", **state})).encode()
        assert (await proxy.post(body, **MODERN)).json()["result"] == {"name": "t", **state}
        assert upstream.received[-1].body == body
    assert len(upstream.received) == 2
    assert await proxy.sessions() == []


async def test_results_are_not_cached(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    public = {"tools": [], "ttlMs": 3_600_000, "cacheScope": "public"}
    for number in (1, 2):
        response = await proxy.post(request("tools/list", number, public), **MODERN)
        assert response.json()["id"] == number
    assert len(upstream.received) == 2
