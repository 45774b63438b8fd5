"""What is not restored: the client begins anew, tries again later, or reads the refusal itself."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import anyio
import pytest

from tests.support.forgetful import (
    JSON,
    RECOVERY,
    REFUSALS,
    TEXT,
    ForgetfulServer,
    Refusal,
    requests_of,
    stored,
    upstream_id,
)
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result


async def refused_for_good(proxy: Proxied) -> None:
    response = await proxy.call(5)
    assert response.status_code == 404
    assert response.json()["error"]["data"]["reason"] == "session_unknown"
    assert response.json()["id"] == 5
    assert await stored(proxy) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"serverInfo": {"name": "scripted", "version": "2"}},
        {"protocolVersion": "2025-06-18"},
        {"serverInfo": 1},
    ],
)
async def test_another_server_is_not_taken_for_the_one_it_was(
    proxy: Proxied, server: ForgetfulServer, changed: dict[str, Any]
) -> None:
    await proxy.begin()
    server.forget()
    server.answer |= changed
    await refused_for_good(proxy)
    assert server.executed == []
    assert server.ended == ["upstream-2"]


async def test_the_same_server_said_in_other_words_is_the_same(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    server.answer["serverInfo"] = dict(reversed(INITIALIZE_RESULT["serverInfo"].items()))  # type: ignore[attr-defined]
    assert (await proxy.call()).status_code == 200


def answering(status: str, *headers: tuple[str, str], error: bool = False, body: bytes = b"") -> Any:
    async def initialize(received: Received, connection: Connection) -> None:
        message_id = received.message.get("id")
        message = {"jsonrpc": "2.0", "id": message_id, "error": {"code": -32602, "message": "no"}}
        content = json.dumps(message).encode() if error else body
        await connection.respond(content, *headers, status=status)

    return initialize


@pytest.mark.parametrize(
    "initialize",
    [
        answering("200 OK", JSON, error=True),
        answering("400 Bad Request", JSON, error=True),
        answering("400 Bad Request", TEXT, body=b"no"),
        answering("200 OK", JSON, body=b"{}"),
        answering("202 Accepted"),
    ],
)
async def test_a_refused_handshake_ends_the_session(
    proxy: Proxied, server: ForgetfulServer, initialize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await proxy.begin()
    server.forget()
    server.initialize = initialize  # type: ignore[method-assign]
    await refused_for_good(proxy)
    assert "the handshake it began with is refused" in caplog.text


async def test_a_server_that_keeps_no_sessions_any_more_ends_it(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    async def initialize(received: Received, connection: Connection) -> None:
        await connection.respond(result(received.message["id"], INITIALIZE_RESULT), JSON)

    await proxy.begin()
    server.forget()
    server.initialize = initialize  # type: ignore[method-assign]
    await refused_for_good(proxy)


async def test_a_handshake_without_end_is_none(upstream: ScriptedUpstream, server: ForgetfulServer) -> None:
    async def initialize(received: Received, connection: Connection) -> None:
        await connection.start_stream(("Mcp-Session-Id", "endless"))
        with suppress(ConnectionError):
            while True:
                await connection.chunk(b": and so on\n\n" * 100)

    async with proxied(upstream.url, max_message_bytes=10_000) as proxy:
        await proxy.begin()
        server.forget()
        server.initialize = initialize  # type: ignore[method-assign]
        with anyio.fail_after(5):
            await refused_for_good(proxy)


async def test_a_server_that_declares_nothing_is_not_spoken_for(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    told: list[list[bytes]] = []
    proxy.service.proxies["default"].restorer.tell = lambda session, messages: told.append(messages)
    del server.answer["capabilities"]
    await proxy.begin()
    server.forget()
    await proxy.call()
    assert told == [[]]


async def test_a_session_of_which_too_little_is_known_ends(proxy: Proxied, server: ForgetfulServer) -> None:
    server.answer["serverInfo"] = {"name": "x" * 20_000, "version": "1"}
    await proxy.begin()
    server.forget()
    await refused_for_good(proxy)
    assert server.methods == ["tools/call", "ping"]


async def cut(received: Received, connection: Connection) -> None:
    connection.cut()


TROUBLE = [
    cut,
    answering("503 Service Unavailable", ("Retry-After", "1")),
    answering("503 Service Unavailable", JSON, error=True),
    answering("404 Not Found", TEXT, body=b"default backend"),
    answering("429 Too Many Requests"),
    answering("307 Temporary Redirect", ("Location", "/mcp/")),
]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("ping", cut),
        ("ping", answering("503 Service Unavailable")),
        ("ping", answering("429 Too Many Requests")),
        *(("initialize", each) for each in TROUBLE),
        *(("notifications/initialized", each) for each in TROUBLE),
    ],
)
async def test_an_upstream_in_trouble_costs_no_session(
    proxy: Proxied, server: ForgetfulServer, method: str, answer: Any
) -> None:
    """Neither now nor later: as soon as the server is back, the client goes on."""
    await proxy.begin()
    server.forget()

    async def trouble(received: Received, connection: Connection) -> None:
        await (answer if received.rpc_method == method else server.serve)(received, connection)

    server.upstream.handshake = trouble
    response = await proxy.call(5)
    assert response.status_code == 502
    assert response.json()["error"]["data"]["reason"] == "restore_failed"
    assert "not processed" in response.json()["error"]["message"]
    assert server.methods[-1] in (method, "DELETE")
    assert await upstream_id(proxy) == "upstream-1"
    server.upstream.handshake = server.serve
    assert (await proxy.call()).status_code == 200


async def test_an_upstream_that_goes_away_in_the_middle_costs_no_session(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()

    async def refuse_and_leave(connection: Connection) -> None:
        listening.close()
        body = server.refusal.body
        await connection.respond(body, JSON, ("Connection", "close"), status=server.refusal.status)
        connection.writer.close()

    server.refuse = refuse_and_leave  # type: ignore[method-assign]
    listening = server.upstream.server
    response = await proxy.call()
    assert response.status_code == 502
    assert response.json()["error"]["data"]["reason"] == "upstream_unreachable"
    assert await upstream_id(proxy) == "upstream-1"


async def test_a_handshake_that_hangs_is_given_up(
    proxy: Proxied, server: ForgetfulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(received: Received, connection: Connection) -> None:
        await connection.peer_left()

    async def begin_and_hang(received: Received, connection: Connection) -> None:
        server.live.add("never answered")
        await connection.start_stream(("Mcp-Session-Id", "never answered"))
        await connection.peer_left()

    monkeypatch.setattr("shadowcat.restore._PATIENCE", 0.2)
    await proxy.begin()
    for initialize in (hang, begin_and_hang):
        server.forget()
        server.initialize = initialize  # type: ignore[method-assign]
        response = await proxy.call()
        assert (response.status_code, response.json()["error"]["data"]["reason"]) == (502, "restore_failed")
        assert await upstream_id(proxy) == "upstream-1"
    assert server.ended == ["never answered"]


async def test_a_credential_that_initialize_refuses_gets_the_refusal_and_ends_nothing(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    server.initialize = answering("401 Unauthorized", ("WWW-Authenticate", "Bearer"))  # type: ignore[method-assign]
    response = await proxy.call()
    assert (response.status_code, response.content) == (404, server.refusal.body)
    assert await upstream_id(proxy) == "upstream-1"


async def test_a_second_refusal_passes(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()

    async def forget_again(received: Received, connection: Connection) -> None:
        if received.rpc_method == "notifications/initialized":
            await connection.respond(status="202 Accepted")
        else:
            await server.refuse(connection)

    server.execute = forget_again  # type: ignore[method-assign]
    response = await proxy.call()
    assert (response.status_code, response.content) == (404, server.refusal.body)
    assert server.methods == ["tools/call", *RECOVERY, "tools/call"]


@pytest.mark.parametrize("name", REFUSALS)
async def test_switched_off_the_refusal_passes(
    upstream: ScriptedUpstream, server: ForgetfulServer, name: str
) -> None:
    async with proxied(upstream.url, restore_sessions=False) as proxy:
        await proxy.begin()
        server.refusal = REFUSALS[name]
        server.forget()
        response = await proxy.call()
        assert response.status_code == int(server.refusal.status[:3])
        assert response.content == server.refusal.body
        assert server.methods == ["tools/call"]
        assert await upstream_id(proxy) == "upstream-1"


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal("400 Bad Request", b'{"jsonrpc": "2.0",  "id": 1, "error": {"code": -32602}}'),
        Refusal("400 Bad Request", b"x" * 100_000, TEXT),
        Refusal("400 Bad Request", b"", TEXT),
        Refusal("400 Bad Request", b'{"error": "your shopping session is over"}'),
        Refusal("404 Not Found", b"Cannot GET /mcp", TEXT),
        Refusal("404 Not Found", b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32002}}'),
    ],
    ids=["json", "long", "empty", "another session", "route", "resource"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_no_complaint_about_the_session_passes_byte_for_byte(
    proxy: Proxied, server: ForgetfulServer, refusal: Refusal, method: str
) -> None:
    """Where the words could be one, `ping` says that the session is still there."""

    async def refuse(received: Received, connection: Connection) -> None:
        if received.rpc_method == "ping":
            await connection.respond(result(received.message["id"], {}), JSON)
        else:
            await connection.respond(refusal.body, refusal.header, status=refusal.status)

    await proxy.begin()
    server.execute = refuse  # type: ignore[method-assign]
    async with proxy.stream(method, None if method == "GET" else request("tools/call")) as response:
        assert await response.aread() == refusal.body
    assert response.status_code == int(refusal.status[:3])
    assert response.headers["content-type"] == refusal.header[1]
    assert server.begun == 1
    doubtful = refusal.status.startswith("404") or b"session" in refusal.body
    assert requests_of(proxy) == (2, 2, int(doubtful))


async def test_a_server_that_knows_no_ping_has_not_forgotten_for_that(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        ping = received.rpc_method == "ping"
        status = "400 Bad Request" if ping else "404 Not Found"
        await connection.respond(b"What is that?", TEXT, status=status)

    await proxy.begin()
    server.execute = refuse  # type: ignore[method-assign]
    assert (await proxy.call()).status_code == 404
    assert server.begun == 1


async def test_a_refusal_in_a_content_encoding_is_asked_about(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.respond(b"\x1f\x8b", ("Content-Encoding", "gzip"), TEXT, status="400 Bad Request")

    await proxy.begin()
    server.forget()
    server.refuse = refuse  # type: ignore[method-assign]
    assert (await proxy.call()).status_code == 200


async def test_a_refusal_that_breaks_off_is_no_whole_one(proxy: Proxied, server: ForgetfulServer) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.respond(b"sess", TEXT, status="404 Not Found", length=100)
        connection.writer.close()

    await proxy.begin()
    server.forget()
    server.refuse = refuse  # type: ignore[method-assign]
    response = await proxy.call()
    assert (response.status_code, response.json()["error"]["data"]["reason"]) == (502, "upstream_broke")


async def test_delete_options_and_initialize_restore_nothing(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()
    headers = {"Mcp-Session-Id": proxy.session_id}
    assert (await proxy.client.request("OPTIONS", proxy.url, headers=headers)).status_code == 404

    async def refuse(received: Received, connection: Connection) -> None:
        await server.refuse(connection)

    initialize, server.initialize = server.initialize, refuse  # type: ignore[method-assign]
    assert (await proxy.post(INITIALIZE)).status_code == 404
    server.initialize = initialize  # type: ignore[method-assign]
    assert (await proxy.client.delete(proxy.url, headers=headers)).status_code == 404
    assert server.methods == ["OPTIONS", "initialize", "DELETE"]
    assert await stored(proxy) is None


async def test_what_crosses_the_end_of_a_session_does_not_begin_it_anew(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    ending, ended = anyio.Event(), anyio.Event()

    async def end(received: Received, connection: Connection) -> None:
        if received.method == "DELETE":
            server.forget()
            ending.set()
            await ended.wait()
            await connection.respond()
        else:
            await server.serve(received, connection)

    async def delete() -> None:
        response = await proxy.client.delete(proxy.url, headers={"Mcp-Session-Id": proxy.session_id})
        assert response.status_code == 200

    server.upstream.handshake = end
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(delete)
            await ending.wait()
            assert (await proxy.call()).status_code == 404
            ended.set()
    assert server.methods == ["tools/call"]
    assert await stored(proxy) is None


async def test_a_session_that_may_not_be_ended_is_restored_later(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(status="405 Method Not Allowed")

    await proxy.begin()
    server.upstream.handshake = refuse
    headers = {"Mcp-Session-Id": proxy.session_id}
    assert (await proxy.client.delete(proxy.url, headers=headers)).status_code == 405
    server.upstream.handshake = server.serve
    server.forget()
    assert (await proxy.call()).status_code == 200


async def test_a_session_that_the_upstream_never_named_is_not_restored(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(b"Session not found", TEXT, status="404 Not Found")

    upstream.session = None
    await proxy.begin()
    upstream.script = refuse
    assert (await proxy.call()).content == b"Session not found"
    assert len(upstream.forwarded) == 1


async def test_a_stateless_request_is_not_restored(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()
    response = await proxy.post(request("tools/call"), MCP_Protocol_Version="2026-07-28")
    assert response.status_code == 404
    assert server.methods == ["tools/call"]


async def test_a_stranger_does_not_take_a_session_over_by_having_it_restored(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    """Servers answer a credential that did not begin the session as if there were none."""
    await proxy.begin()
    live = set(server.live)
    server.forget()
    assert (await proxy.post(request("tools/call"), Authorization="Bearer other")).status_code == 404
    assert server.methods == ["tools/call"]
    server.live |= live
    assert (await proxy.call()).status_code == 200
