"""What either side sends arrives as it was sent, less hop-by-hop headers."""

from __future__ import annotations

import gzip
import json
import re

import anyio
import pytest

from tests.support.proxying import Proxied, proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream

SSE = (("Content-Type", "text/event-stream"),)
EVENTS = {
    "lf": b'event: message\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
    "crlf": b'event: message\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n',
    "cr": b'data: {"jsonrpc":"2.0","id":1,"result":{}}\r\r',
    "bom": b'\xef\xbb\xbfdata: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
    "comments": b": keep-alive\n\n:\n\ndata: x\n\n: bye\n\n",
    "retry and priming": b"retry: 1500\nid: p-0\ndata: \n\n",
    "unknown fields and events": b"event: weather\nhumidity: 80\nfoo\ndata: rain\n\n",
    "multi-line data": b'id: 7\ndata: {"jsonrpc":"2.0",\ndata: "id":1,"result":{}}\n\n',
    "not utf-8": b"data: \xff\xfe\xfd\n\n",
    "unfinished": b"data: one\n\ndata: never ended",
    "nothing": b"",
}


def raw_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]


@pytest.mark.parametrize("tape", ["off", "window"])
@pytest.mark.parametrize("stream", EVENTS.values(), ids=EVENTS)
async def test_an_sse_stream_arrives_byte_for_byte(
    upstream: ScriptedUpstream, stream: bytes, tape: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        for at in range(0, len(stream), 3):
            await connection.chunk(stream[at : at + 3])
        await connection.end_stream()

    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        upstream.script = script
        response = await proxy.call()
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    if tape == "off":
        assert response.content == stream
    else:
        assert as_it_came(response.content) == stream.removesuffix(b"data: never ended")


def as_it_came(stream: bytes) -> bytes:
    """Return the stream of a session without what the proxy adds: ids, and a word on a missing answer."""
    stream = re.sub(rb"id: s\.[\w-]{8}(\.[\w-]+)?-\d+\n", b"", stream)
    return re.sub(rb'data: {"jsonrpc":"2.0","id":1,"error":{"code":-31001[^\n]*\n\n$', b"", stream)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b'{"jsonrpc":"2.0","id":1,"result":{"big":1}}')),
        ("br", bytes.fromhex("8b0280") + b"hello" + b"\x03"),
        ("gzip", b"this is no gzip at all"),
    ],
    ids=["gzip", "br", "broken gzip"],
)
@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_a_compressed_body_stays_compressed(
    proxy: Proxied, upstream: ScriptedUpstream, encoding: str, body: bytes, media: str
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(body, ("Content-Type", media), ("Content-Encoding", encoding))

    await proxy.begin()
    upstream.script = script
    async with proxy.stream("POST", request("tools/call")) as response:
        arrived = b"".join([chunk async for chunk in response.aiter_raw()])
    assert response.headers["content-encoding"] == encoding
    assert arrived == body


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("200 OK", [("Content-Type", "application/json")], b'{"jsonrpc":"2.0","id":1,"result":{"n":1e400}}'),
        ("200 OK", [("Content-Type", "image/png")], bytes(range(256))),
        ("202 Accepted", [], b""),
        ("204 No Content", [], b""),
        ("301 Moved Permanently", [("Location", "http://127.0.0.1:1/elsewhere")], b""),
        ("307 Temporary Redirect", [("Location", "/mcp/")], b"moved"),
        ("308 Permanent Redirect", [("Location", "/mcp/")], b"moved"),
        ("400 Bad Request", [("Content-Type", "application/json")], b'{"jsonrpc":"2.0","id":null,"error":1}'),
        (
            "401 Unauthorized",
            [
                ("WWW-Authenticate", 'Bearer resource_metadata="https://x.example/prm", scope="a b"'),
                ("WWW-Authenticate", "Basic"),
            ],
            b"who are you",
        ),
        ("403 Forbidden", [("WWW-Authenticate", 'Bearer error="insufficient_scope"')], b""),
        ("404 Not Found", [("Content-Type", "text/plain")], b"Session not found"),
        ("405 Method Not Allowed", [("Allow", "POST, DELETE")], b""),
        ("409 Conflict", [("Content-Type", "text/plain")], b"Only one SSE stream"),
        ("429 Too Many Requests", [("Retry-After", "7")], b"slow down"),
        ("500 Internal Server Error", [("Content-Type", "text/html")], b"<h1>sorry</h1>"),
        ("503 Service Unavailable", [("Retry-After", "3"), ("X-Request-Id", "r-1")], b"busy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_status_headers_and_body_arrive_as_they_were_sent(
    upstream: ScriptedUpstream,
    status: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    sent = [
        *headers,
        ("Set-Cookie", "a=1; Path=/"),
        ("Set-Cookie", "b=2; Path=/"),
        ("X-Accel-Buffering", "no"),
    ]

    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(body, *sent, status=status)

    async with proxied(upstream.url, restore_sessions=False) as proxy:
        await proxy.begin()
        upstream.script = script
        response = await proxy.call()
    assert response.status_code == int(status[:3])
    assert response.content == body
    expected = [(name.lower().encode(), value.encode()) for name, value in sent]
    expected.append((b"content-length", b"%d" % len(body)))
    expected.append((b"mcp-session-id", proxy.session_id.encode()))
    assert raw_headers(response.headers.raw) == expected
    assert len(upstream.forwarded) == 1


async def test_hop_by_hop_headers_end_at_the_proxy_in_both_directions(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(
            b"ok",
            ("Connection", "keep-alive, X-Hop"),
            ("Keep-Alive", "timeout=5"),
            ("X-Hop", "1"),
            ("Proxy-Authenticate", "Basic"),
            ("X-Stays", "1"),
        )

    await proxy.begin()
    upstream.script = script
    response = await proxy.post(
        request("tools/call"),
        Connection="X-Secret",
        X_Secret="1",
        TE="trailers",
        Proxy_Authorization="Basic eDp5",
        X_Kept="1",
        Cookie="c=1",
    )
    assert [name for name, _ in raw_headers(response.headers.raw)] == [
        b"x-stays",
        b"content-length",
        b"mcp-session-id",
    ]
    names = [name for name, _ in raw_headers(upstream.received[-1].headers)]
    # Nothing is added to what came: no Accept-Encoding, no User-Agent, no X-Forwarded-For.
    assert sorted(names) == sorted(
        [
            b"host",
            b"accept",
            b"content-type",
            b"mcp-session-id",
            b"x-kept",
            b"cookie",
            b"content-length",
        ]
    )
    assert upstream.received[-1].header(b"host") == upstream.url.split("/")[2].encode()


@pytest.mark.parametrize(
    "body",
    [
        b' {"jsonrpc" : "2.0","id":12345678901234567890123,"method":"a","params":{"b":1,"a":1e2,"a":2}}\n',
        b'{"jsonrpc":"2.0","id":"\\ud800","method":"tools/call","params":{"s":"\\ud83d"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/x"}]',
        b'{"jsonrpc":"2.0","id":3,"result":{"action":"accept"}}',
        b'{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"no"}}',
    ],
    ids=["odd JSON", "lone surrogate", "deep", "batch", "response", "error"],
)
async def test_the_request_body_is_forwarded_as_it_came(
    proxy: Proxied, upstream: ScriptedUpstream, body: bytes
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"{}", ("Content-Type", "application/json"))

    await proxy.begin()
    upstream.script = script
    assert (await proxy.post(body)).status_code == 200
    assert upstream.received[-1].body == body


async def test_the_query_reaches_the_upstream(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url + "?tenant=1") as proxy:
        await proxy.begin()
        proxy.path = "/mcp?a=b%20c"
        await proxy.call()
    assert [each.target for each in upstream.received] == ["/mcp?tenant=1", "/mcp?tenant=1&a=b%20c"]


async def test_preflight_requests_pass(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(b"", ("Access-Control-Allow-Origin", "*"), status="204 No Content")

    upstream.script = script
    response = await proxy.client.options(proxy.url, headers={"Access-Control-Request-Method": "POST"})
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"


async def test_progress_arrives_when_it_is_sent_not_bunched(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    """The upstream sends the next event only after the client has seen the one before."""

    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        for step in range(5):
            await connection.chunk(b"data: %d\n\n" % step)
            await arrived[step].wait()
        await connection.end_stream()

    arrived = [anyio.Event() for _ in range(5)]
    seen: list[bytes] = []
    await proxy.begin()
    upstream.script = script
    with anyio.fail_after(5):
        async with proxy.stream("POST", request("tools/call")) as response:
            async for chunk in response.aiter_raw():
                seen.append(chunk)
                if len(seen) <= len(arrived):
                    arrived[len(seen) - 1].set()
    assert [as_it_came(each) for each in seen[:5]] == [b"data: %d\n\n" % step for step in range(5)]


async def test_a_json_body_keeps_its_bytes(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "result": {"text": "ü" * 70_000}}, ensure_ascii=False
    ).encode()

    async def script(received: Received, connection: Connection) -> None:
        await connection.respond(body, ("Content-Type", "application/json; charset=utf-8"))

    await proxy.begin()
    upstream.script = script
    response = await proxy.call()
    assert response.content == body
    assert response.headers["content-length"] == str(len(body))
