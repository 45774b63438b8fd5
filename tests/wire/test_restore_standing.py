"""What the client has set in a session is set again when it is restored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shadowcat_stores import Session, StoreUnavailable
from tests.support.forgetful import (
    JSON,
    TEXT,
    ForgetfulServer,
    stored,
)
from tests.support.proxying import Proxied, proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream, result


async def stream_it(received: Received, connection: Connection) -> None:
    message = result(received.message.get("id"), {})
    await connection.start_stream()
    await connection.chunk(b"data: " + message[:9])
    await connection.chunk(message[9:] + b"\n\n")
    await connection.end_stream()


async def send_it(received: Received, connection: Connection) -> None:
    await connection.respond(result(received.message.get("id"), {}), JSON)


@pytest.mark.parametrize("execute", [stream_it, send_it])
@pytest.mark.parametrize("tape", ["off", "window"])
async def test_log_level_and_subscriptions_are_set_again(
    upstream: ScriptedUpstream, server: ForgetfulServer, execute: Any, tape: str
) -> None:
    server.execute = execute  # type: ignore[method-assign]
    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        for level in ("debug", "error", "error"):
            await proxy.post(request("logging/setLevel", 1, {"level": level}))
        for uri in ("note://a", "note://b", "note://a", "note://ü"):
            await proxy.post(request("resources/subscribe", 2, {"uri": uri, "_meta": {"progressToken": 1}}))
        await proxy.post(request("resources/unsubscribe", 3, {"uri": "note://b"}))
        session = await stored(proxy)
        assert session is not None
        assert (session.log_level, session.subscriptions) == ("error", ("note://a", "note://ü"))
        assert session.revision == 7  # once for each change; to set what is set changes nothing
        server.forget()
        await proxy.call()
    sent = [each.message for each in upstream.received]
    assert [(each["method"], each.get("params")) for each in sent[4:-1]] == [
        ("logging/setLevel", {"level": "error"}),
        ("resources/subscribe", {"uri": "note://a"}),
        ("resources/subscribe", {"uri": "note://ü"}),
    ]
    assert {each.header(b"mcp-session-id") for each in upstream.received[4:]} == {b"upstream-2"}


async def test_what_the_server_refused_is_not_standing(proxy: Proxied, server: ForgetfulServer) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        body = {"jsonrpc": "2.0", "id": received.message["id"], "error": {"code": -32602, "message": "no"}}
        await connection.respond(json.dumps(body).encode(), JSON)

    async def fail(received: Received, connection: Connection) -> None:
        await connection.respond(b"", status="500 Internal Server Error")

    await proxy.begin()
    before = await stored(proxy)
    for execute in (refuse, fail):
        server.execute = execute  # type: ignore[method-assign]
        await proxy.post(request("logging/setLevel", 1, {"level": "debug"}))
        await proxy.post(request("resources/subscribe", 2, {"uri": "note://a"}))
    server.execute = send_it  # type: ignore[method-assign]
    for params in ({"uri": 7}, {"uri": "x" * 3000}, {}, None):
        await proxy.post(request("resources/subscribe", 3, params))
    assert await stored(proxy) == before


async def test_what_the_store_does_not_take_is_set_all_the_same(
    proxy: Proxied, server: ForgetfulServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(session: Session) -> Session:
        raise StoreUnavailable("down")

    await proxy.begin()
    monkeypatch.setattr(proxy.store, "update_session", refuse)
    response = await proxy.post(request("logging/setLevel", 1, {"level": "debug"}))
    assert response.status_code == 200
    assert "could not be kept" in caplog.text


async def test_a_batch_sets_what_is_in_it(proxy: Proxied, server: ForgetfulServer) -> None:
    async def answer_all(received: Received, connection: Connection) -> None:
        answers = [json.loads(result(each["id"], {})) for each in received.message if "id" in each]
        await connection.respond(json.dumps(answers).encode(), JSON)

    await proxy.begin()
    server.execute = answer_all  # type: ignore[method-assign]
    subscribe = {"method": "resources/subscribe", "params": {"uri": "note://no-id"}}
    level = request("logging/setLevel", "a", {"level": "info"})
    await proxy.post([request("ping", 1), level, {"jsonrpc": "2.0", **subscribe}])
    session = await stored(proxy)
    assert session is not None
    assert (session.log_level, session.subscriptions) == ("info", ())


async def test_a_subscription_that_cannot_be_set_again_holds_up_nothing(
    proxy: Proxied, server: ForgetfulServer, caplog: pytest.LogCaptureFixture
) -> None:
    await proxy.begin()
    await proxy.post(request("resources/subscribe", 1, {"uri": "note://gone"}))
    server.forget()
    execute = server.execute

    async def refuse(received: Received, connection: Connection) -> None:
        if received.rpc_method == "resources/subscribe":
            await connection.respond(b"what?", TEXT, status="422 Unprocessable Content")
        else:
            await execute(received, connection)

    server.execute = refuse  # type: ignore[method-assign]
    assert (await proxy.call()).status_code == 200
    assert "resources/subscribe is answered 422" in caplog.text
