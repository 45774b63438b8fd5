"""The upstream forgets a session: it is begun there anew, and the client goes on."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import anyio
import pytest

from shadowcat.protocol import MARK
from tests.support.forgetful import (
    RECOVERY,
    REFUSALS,
    ForgetfulServer,
    requests_of,
    upstream_id,
)
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result


@pytest.mark.parametrize("name", REFUSALS)
async def test_the_client_notices_nothing_however_the_server_says_it(
    proxy: Proxied, server: ForgetfulServer, name: str
) -> None:
    await proxy.begin()
    server.refusal = REFUSALS[name]
    server.forget()
    response = await proxy.call(7, text="once")
    assert (response.status_code, response.json()["id"]) == (200, 7)
    assert response.headers["mcp-session-id"] == proxy.session_id
    assert server.executed == [{"text": "once"}]
    assert server.methods == ["tools/call", *RECOVERY, "tools/call"]
    assert await upstream_id(proxy) == "upstream-2"
    assert requests_of(proxy) == (2, 2, 4)
    # It goes on as if nothing had been.
    assert (await proxy.call(8)).status_code == 200
    assert requests_of(proxy) == (3, 3, 4)


async def test_the_get_stream_opens_again(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()
    async with proxy.stream("GET") as response:
        assert response.status_code == 200
        assert b"notifications/hello" in await anext(response.aiter_raw())
    assert server.methods[: len(RECOVERY) + 2] == ["GET", *RECOVERY, "GET"]


@pytest.mark.parametrize(
    "message", [{"jsonrpc": "2.0", "method": "notifications/progress"}, [request("ping")]]
)
async def test_notifications_and_batches_go_on_as_well(
    proxy: Proxied, server: ForgetfulServer, message: Any
) -> None:
    await proxy.begin()
    server.forget()
    assert (await proxy.post(message)).status_code == 202
    assert server.begun == 2


async def test_an_answer_is_not_given_to_a_server_that_has_not_asked(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    """Its id may be another question's in the new session."""
    await proxy.begin()
    server.forget()
    response = await proxy.post({"jsonrpc": "2.0", "id": 0, "result": {"roots": []}})
    assert (response.status_code, response.content) == (202, b"")
    assert response.headers["mcp-session-id"] == proxy.session_id
    assert len([each for each in server.upstream.received if b'"roots"' in each.body]) == 1
    assert server.begun == 2


async def test_the_second_sending_is_the_first_with_another_session_id(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    body = b'{"jsonrpc":"2.0" , "id":1e2,"method":"tools/call","params":{"n":12345678901234567890, "n":1}}'
    await proxy.begin()
    server.forget()
    proxy.path = "/mcp?tenant=a"
    await proxy.post(body, X_Trace="a", MCP_Protocol_Version="2025-11-25")
    first, *_, again = server.upstream.received
    assert first.body == again.body == body
    assert first.target == again.target == "/mcp?tenant=a"
    assert [pair for pair in first.headers if pair[0] != b"mcp-session-id"] == [
        pair for pair in again.headers if pair[0] != b"mcp-session-id"
    ]
    assert (first.header(b"mcp-session-id"), again.header(b"mcp-session-id")) == (
        b"upstream-1",
        b"upstream-2",
    )


async def test_the_handshake_is_the_clients_with_the_refused_requests_credentials(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    proxy.headers = {"Authorization": "Bearer t", "X-Tenant": "a"}
    await proxy.begin()
    server.forget()
    await proxy.post(
        request("tools/call"), Mcp_Protocol_Version="2025-11-25", Mcp_Name="x", Last_Event_ID="3"
    )
    _, ping, initialize, initialized, _ = server.upstream.received
    assert initialize.message["params"] == INITIALIZE["params"]
    for each in (ping, initialize, initialized):
        assert each.header(b"authorization") == b"Bearer t"
        assert each.header(b"x-tenant") == b"a"
        assert each.header(b"host") == server.upstream.url.split("/")[2].encode()
        assert each.header(b"mcp-name") is each.header(b"last-event-id") is None
    assert initialize.header(b"mcp-session-id") is initialize.header(b"mcp-protocol-version") is None
    assert (ping.header(b"mcp-session-id"), initialized.header(b"mcp-session-id")) == (
        b"upstream-1",
        b"upstream-2",
    )
    assert (
        ping.header(b"mcp-protocol-version") == initialized.header(b"mcp-protocol-version") == b"2025-11-25"
    )


async def test_a_refreshed_token_of_the_same_principal_restores_too(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    claims = base64.urlsafe_b64encode(b'{"iss":"https://a","sub":"ada"}').decode().rstrip("=")
    await proxy.begin(Authorization=f"Bearer e30.{claims}.first")
    server.forget()
    response = await proxy.post(request("tools/call"), Authorization=f"Bearer e30.{claims}.second")
    assert response.status_code == 200
    assert server.begun == 2


async def test_a_web_pages_origin_is_the_upstreams_own_in_recovery_too(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    await proxy.post(request("tools/call"), Origin=proxy.base)
    origins = {each.header(b"origin") for each in server.upstream.received}
    assert origins == {server.upstream.url.removesuffix("/mcp").encode()}


async def test_an_answer_in_a_stream_restores_as_well(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()

    async def initialize(received: Received, connection: Connection) -> None:
        server.live.add("streamed")
        await connection.start_stream(("Mcp-Session-Id", "streamed"))
        await connection.chunk(b"id: 0\ndata:\n\n")
        await connection.chunk(b"data: " + result("other", 1) + b"\n\n")
        await connection.chunk(b"data: " + result(received.message["id"], INITIALIZE_RESULT) + b"\n\n")
        await connection.peer_left()  # a server may leave it open

    server.initialize = initialize  # type: ignore[method-assign]
    with anyio.fail_after(5):
        assert (await proxy.call()).status_code == 200
    assert await upstream_id(proxy) == "streamed"


async def test_it_is_said_in_log_tape_and_counters(
    proxy: Proxied, server: ForgetfulServer, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bytes] = []
    server.answer["capabilities"] = {
        "tools": {"listChanged": True},
        "prompts": {"listChanged": False},
        "resources": {"listChanged": True, "subscribe": True},
        "logging": {},
    }
    proxy.service.proxies["default"].restorer.tell = lambda session, messages: told.extend(messages)
    await proxy.begin()
    server.forget()
    await proxy.call()
    assert [json.loads(each)["method"] for each in told] == [
        "notifications/tools/list_changed",
        "notifications/resources/list_changed",
    ]
    (line,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert proxy.session_id in line.message
    kinds = [(each.direction, each.envelope.kind, each.envelope.raw) for each in await proxy.tape()]
    assert kinds[2:][1] == ("server", "other", MARK)
    assert [kind for _, kind, _ in kinds] == ["request", "response", "request", "other", "response"]
    assert "shadowcat_sessions_restored_total 1" in proxy.service.metrics()


async def test_with_the_upstreams_own_ids_the_client_keeps_the_one_it_has(
    upstream: ScriptedUpstream, server: ForgetfulServer
) -> None:
    async with proxied(upstream.url, session_ids="upstream") as proxy:
        await proxy.begin()
        server.forget()
        response = await proxy.call()
        assert response.headers["mcp-session-id"] == proxy.session_id == "upstream-1"
        assert upstream.received[-1].header(b"mcp-session-id") == b"upstream-2"
