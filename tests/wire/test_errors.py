"""What the client is told when a request cannot be forwarded, or the upstream does not answer properly."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import anyio
import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowcat import Settings, create_app
from shadowcat.protocol import AMBIGUOUS_DELIVERY
from shadowcat_stores import MemoryStore
from tests.support.proxying import ACCEPT, INITIALIZE, Proxied, proxied, request
from tests.support.serving import serve
from tests.support.upstream import Connection, Received, ScriptedUpstream


def error_of(response: httpx2.Response) -> Any:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["jsonrpc"] == "2.0"
    code = body["error"]["code"]
    # Standard codes, or outside the range that JSON-RPC reserves.
    assert code in (-32700, -32600, -32603) or not -32768 <= code <= -32000
    return body["id"], code, body["error"]["data"]["reason"]


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"", -32700, "not_json"),
        (b"{", -32700, "not_json"),
        (b"\xff", -32700, "not_json"),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"n":NaN}}', -32700, "not_json"),
        (b"5", -32600, "not_json_rpc"),
        (b"[]", -32600, "not_json_rpc"),
        (b"[1]", -32600, "not_json_rpc"),
        (b'{"id":1,"method":"x"}', -32600, "not_json_rpc"),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', -32600, "not_json_rpc"),
        (b'{"jsonrpc":"2.0","id":1}', -32600, "not_json_rpc"),
        (b'{"jsonrpc":"2.0","id":{},"method":"x"}', -32600, "not_json_rpc"),
        (b'{"jsonrpc":"2.0","id":1,"result":1,"error":{}}', -32600, "not_json_rpc"),
        (b'["\\ud800"]', -32600, "not_json_rpc"),
    ],
)
async def test_a_body_that_is_no_message(
    proxy: Proxied, upstream: ScriptedUpstream, body: bytes, code: int, reason: str
) -> None:
    await proxy.begin()
    response = await proxy.post(body)
    assert response.status_code == 400
    assert error_of(response) == (None, code, reason)
    assert upstream.forwarded == []


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": ""}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Accept": "text/html, application/json;q=0"}, 406, "not_acceptable"),
        ({"Origin": "https://evil.example"}, 403, "forbidden_origin"),
        ({"Origin": "null"}, 403, "forbidden_origin"),
        ({"Origin": "http://["}, 403, "forbidden_origin"),
        ({"Host": "["}, 403, "forbidden_origin"),
        ({"Host": "evil@localhost"}, 403, "forbidden_origin"),
        ({"Host": "evil.example:8080"}, 403, "forbidden_origin"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403, "forbidden_origin"),
    ],
)
async def test_headers_that_are_refused(
    proxy: Proxied, upstream: ScriptedUpstream, headers: dict[str, str], status: int, reason: str
) -> None:
    await proxy.begin()
    sent = {
        "Content-Type": "application/json",
        "Accept": ACCEPT,
        "Mcp-Session-Id": proxy.session_id,
        **headers,
    }
    response = await proxy.client.post(proxy.url, content=json.dumps(request("ping", 9)), headers=sent)
    assert response.status_code == status
    # The body is not read for these, so its id is not known.
    assert error_of(response) == (None, -32600, reason)
    assert upstream.forwarded == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=utf-8", "Accept": "*/*"},
        {"Content-Type": "APPLICATION/JSON", "Accept": "text/*"},
        {"Origin": "http://localhost:6274"},
        {"Content-Encoding": "identity"},
    ],
)
async def test_headers_that_are_not_refused(proxy: Proxied, headers: dict[str, str]) -> None:
    await proxy.begin()
    sent = {"Content-Type": "application/json", "Mcp-Session-Id": proxy.session_id, **headers}
    response = await proxy.client.post(proxy.url, content=json.dumps(request("ping")), headers=sent)
    assert response.status_code == 200


async def test_a_get_must_accept_a_stream(proxy: Proxied) -> None:
    await proxy.begin()
    headers = {"Mcp-Session-Id": proxy.session_id, "Accept": "text/html"}
    assert (await proxy.client.get(proxy.url, headers=headers)).status_code == 406


async def test_what_passes_for_a_post_does_not_for_a_get(proxy: Proxied) -> None:
    await proxy.begin()
    headers = {
        "Content-Type": "application/json",
        "Mcp-Session-Id": proxy.session_id,
        "Accept": "application/json",
    }
    response = await proxy.client.post(proxy.url, content=json.dumps(request("ping")), headers=headers)
    assert response.status_code == 200
    assert (await proxy.client.get(proxy.url, headers=headers)).status_code == 406


async def test_headers_are_looked_at_however_many_have_passed(
    proxy: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.endpoints._PASSED_KEPT", 3)
    await proxy.begin()
    for n in range(5):
        assert (await proxy.post(request("ping"), Accept=f"{ACCEPT}, text/{n}")).status_code == 200
    for accept, status in ((ACCEPT, 200), ("text/html", 406), (ACCEPT, 200)):
        assert (await proxy.post(request("ping"), Accept=accept)).status_code == status


async def test_origins_and_hosts_that_are_set(upstream: ScriptedUpstream) -> None:
    settings: dict[str, Any] = {
        "allowed_origins": ("https://app.example",),
        "allowed_hosts": ("mcp.example", "127.0.0.1"),
    }
    async with proxied(upstream.url, **settings) as proxy:
        await proxy.begin(Origin="https://app.example")
        assert upstream.received[-1].header(b"origin") == b"https://app.example"
        message = request("ping")
        assert (await proxy.post(message, Host="mcp.example:443")).status_code == 200
        assert (
            await proxy.post(message, Host="mcp.example", Origin="https://mcp.example")
        ).status_code == 200
        # The proxy's own origin becomes the upstream's, whose own check it must pass.
        assert upstream.received[-1].header(b"origin") == upstream.url.removesuffix("/mcp").encode()
        assert (await proxy.post(message, Host="other.example")).status_code == 403


async def test_any_origin_and_host_can_be_allowed(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, allowed_origins=("*",), allowed_hosts=("*",)) as proxy:
        await proxy.begin(Origin="https://anything.example", Host="any.example")


async def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(
    upstream: ScriptedUpstream,
) -> None:
    async def in_chunks() -> Any:
        for _ in range(3):
            yield b" " * 400

    async with proxied(upstream.url, max_body_bytes=1000) as proxy:
        headers = {"Content-Type": "application/json"}
        for content in (b" " * 1001, in_chunks()):
            response = await proxy.client.post(proxy.url, content=content, headers=headers)
            assert response.status_code == 413
            assert error_of(response) == (None, -32600, "body_too_large")
        await proxy.begin()
        padded = json.dumps(request("ping")).encode().ljust(1000)
        assert (await proxy.post(padded)).status_code == 200
    assert len(upstream.forwarded) == 1


async def test_an_upstream_that_is_down(upstream: ScriptedUpstream) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        async with proxied(f"http://127.0.0.1:{taken.getsockname()[1]}/mcp") as proxy:
            response = await proxy.post(request("initialize", 4, {}))
    assert response.status_code == 502
    assert error_of(response) == (4, -32603, "upstream_unreachable")


async def test_an_upstream_that_takes_no_connection() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with proxied(f"http://127.0.0.1:{address[1]}/mcp", connect_timeout=0.1) as proxy:
            response = await proxy.post(request("initialize", 5, {}))
        for filler in fillers:
            filler.close()
    assert response.status_code == 504
    assert error_of(response) == (5, -32603, "upstream_connect_timeout")


@pytest.mark.parametrize("transport", ["http1", "httpx2"])
async def test_a_header_that_cannot_be_sent_is_named_and_nothing_is_sent(
    upstream: ScriptedUpstream, transport: Any
) -> None:
    """HTTP/1.1 servers let none in; those of other protocols and hosts' middleware may."""

    def app_with_a_header(app: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope = {**scope, "headers": [*scope["headers"], (b"x-odd", b"a\r\nhost: evil")]}
            await app(scope, receive, send)

        return call

    app = create_app(MemoryStore(), upstream=upstream.url, settings=Settings(transport=transport))
    async with serve(app_with_a_header(app)) as base, httpx2.AsyncClient() as client:
        response = await client.post(base + "/mcp", json=INITIALIZE, headers={"Accept": ACCEPT})
    assert response.status_code == 400
    assert error_of(response) == ("init-1", -32600, "unsendable_request")
    assert "'x-odd'" in response.json()["error"]["message"]
    assert "Nothing was sent" in response.json()["error"]["message"]
    assert upstream.received == []


async def test_a_slow_upstream_is_reported_as_ambiguous(upstream: ScriptedUpstream) -> None:
    async def never(received: Received, connection: Connection) -> None:
        await connection.peer_left()

    async with proxied(upstream.url, response_timeout=0.5) as proxy:
        await proxy.begin()
        upstream.script = never
        response = await proxy.call(request_id=6)
    assert response.status_code == 504
    assert error_of(response) == (6, AMBIGUOUS_DELIVERY, "upstream_timeout")
    assert len(upstream.forwarded) == 1


async def test_a_connection_lost_before_the_answer_is_ambiguous(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def cut(received: Received, connection: Connection) -> None:
        connection.cut()

    await proxy.begin()
    upstream.script = cut
    response = await proxy.call(request_id=7)
    assert response.status_code == 502
    assert error_of(response) == (7, AMBIGUOUS_DELIVERY, "ambiguous_delivery")
    assert len(upstream.forwarded) == 1


async def test_an_answer_that_is_no_http_is_ambiguous(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def babble(received: Received, connection: Connection) -> None:
        await connection.send(b"220 smtp.example ready\r\n\r\n")

    await proxy.begin()
    upstream.script = babble
    assert error_of(await proxy.call(request_id=8)) == (8, AMBIGUOUS_DELIVERY, "ambiguous_delivery")


@pytest.mark.parametrize("status", ["600 Strange", "999 Stranger"])
async def test_a_status_that_is_none_is_the_upstreams_fault(
    proxy: Proxied, upstream: ScriptedUpstream, status: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"x", status=status)

    await proxy.begin()
    upstream.script = script
    response = await proxy.call(request_id=3)
    assert response.status_code == 502
    assert error_of(response) == (3, -32603, "upstream_error")


async def test_a_response_with_both_lengths_is_relayed_by_its_chunks(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream(("Content-Length", "3"), media="text/plain")
        await connection.chunk(b"more than three")
        await connection.end_stream()

    await proxy.begin()
    upstream.script = script
    assert (await proxy.call()).content == b"more than three"


async def test_lone_surrogates_in_an_id_are_no_trouble(proxy: Proxied) -> None:
    body = b'{"jsonrpc":"2.0","id":"\\ud800","method":"x\\ud800"}'
    response = await proxy.post(body)
    assert response.status_code == 400
    assert response.json()["id"] == "\\ud800"
    await proxy.begin()
    assert (await proxy.post(body)).status_code == 200


async def test_too_many_upstream_connections(upstream: ScriptedUpstream) -> None:
    async def hold(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.peer_left()

    async with proxied(upstream.url, max_connections=1, connect_timeout=0.5) as proxy:
        await proxy.begin()
        upstream.script = hold
        async with proxy.stream("POST", request("tools/call", 1)):
            response = await proxy.call(request_id=2)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error_of(response) == (2, -32603, "upstream_busy")


@pytest.mark.parametrize("media", ["application/json", "text/event-stream", "image/png"])
@pytest.mark.parametrize("tape", ["off", "window"])
async def test_a_body_shorter_than_announced_never_looks_complete(
    upstream: ScriptedUpstream, media: str, tape: str
) -> None:
    async def lie(received: Received, connection: Connection) -> None:
        await connection.respond(b"data: x\n\n", ("Content-Type", media), length=100)
        connection.writer.close()

    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        upstream.script = lie
        if tape == "window" and media == "text/event-stream":
            assert_ambiguous((await proxy.call()).content)
        else:
            with pytest.raises(httpx2.RemoteProtocolError):
                await proxy.call()
    assert len(upstream.forwarded) == 1


def assert_ambiguous(stream: bytes) -> None:
    """Check that the stream ends with an answer that says that there is none."""
    *_, last, rest = stream.split(b"\n\n")
    assert rest == b""
    error = json.loads(last.partition(b"data: ")[2])
    assert error["id"] == 1
    assert (error["error"]["code"], error["error"]["data"]) == (-31001, {"reason": "ambiguous_delivery"})


@pytest.mark.parametrize("tape", ["off", "window"])
async def test_a_chunked_stream_that_is_cut_never_looks_complete(
    upstream: ScriptedUpstream, tape: str
) -> None:
    async def cut(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b"data: x\n\n")
        await asyncio.sleep(0)
        connection.writer.close()

    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        upstream.script = cut
        with anyio.fail_after(5):
            if tape == "window":
                assert_ambiguous((await proxy.call()).content)
            else:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await proxy.call()


async def test_a_body_longer_than_announced_ends_where_it_said(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def lie(received: Received, connection: Connection) -> None:
        await connection.respond(b"1234567890", ("Content-Type", "text/plain"), length=5)
        await connection.peer_left()

    await proxy.begin()
    upstream.script = lie
    assert (await proxy.call()).content == b"12345"


async def test_what_no_route_takes_is_a_problem_document(proxy: Proxied) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("PUT", "/mcp", 405)):
        response = await proxy.client.request(method, proxy.base + path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
        assert status != 404 or "MCP is at /mcp." in response.json()["detail"]


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        ("404 Not Found", [], "answers 404 to initialize: is it the server's MCP path?"),
        (
            "307 Temporary Redirect",
            [("Location", "/mcp/")],
            "redirects to /mcp/, and redirects are not followed",
        ),
    ],
)
async def test_a_server_that_refuses_to_begin_leaves_a_hint_in_the_log(
    proxy: Proxied,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
    status: str,
    headers: list[tuple[str, str]],
    says: str,
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(b"", *headers, status=status)

    upstream.handshake = refuse
    assert (await proxy.post(request("initialize", 1, {}))).status_code == int(status[:3])
    assert says in caplog.text
