"""The upstream forgets a session: it is begun there anew, once, and the client goes on, or begins anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat.inbound import ClientRequest
from shadowcat.restore import MARK
from shadowcat.upstream import OutboundRequest, Upstream, UpstreamResponse
from shadowcat_stores import Session, SessionStore, SQLiteStore, StoreUnavailable, store_from_url
from tests.support.forgetful import JSON, REFUSALS, TEXT, ForgetfulServer, Refusal
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.raw import raw_client, raw_request
from tests.support.redis import redis_server
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result

RECOVERY = ["ping", "initialize", "notifications/initialized"]


@pytest.fixture
def server(upstream: ScriptedUpstream) -> ForgetfulServer:
    return ForgetfulServer(upstream)


@pytest.fixture(params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[SessionStore]]:
    """The stores of two replicas."""
    if request.param == "sqlite":
        yield [SQLiteStore(tmp_path / "sessions.db") for _ in range(2)]
    else:
        with redis_server() as server:
            yield [store_from_url(server.url) for _ in range(2)]


async def stored(proxy: Proxied) -> Session | None:
    return await proxy.store.get_session(proxy.session_id)


async def upstream_id(proxy: Proxied) -> str | None:
    session = await stored(proxy)
    assert session is not None
    return session.upstream_session_id


def requests_of(proxy: Proxied) -> tuple[int, int, int]:
    """How many came from clients, went upstream for them, and went there to recover."""
    counters = proxy.service.counters
    upstream = counters.upstream_requests
    return counters.client_requests, upstream["forward"], upstream["recover"]


# -- restored -------------------------------------------------------------------------------------------


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
        assert b"notifications/hello" in await response.aread()
    assert server.methods == ["GET", *RECOVERY, "GET"]


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


# -- standing state -------------------------------------------------------------------------------------


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


# -- once -----------------------------------------------------------------------------------------------


async def call_all(proxies: list[Proxied], server: ForgetfulServer, count: int) -> list[httpx2.Response]:
    """Call `count` times at once; the server refuses none before it has got them all."""
    responses: list[httpx2.Response] = []
    refuse, arrived = server.refuse, anyio.Event()
    waiting = 0

    async def refuse_all_together(connection: Connection) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == count:
            arrived.set()
        await arrived.wait()
        await refuse(connection)

    async def call(number: int) -> None:
        responses.append(await proxies[number % len(proxies)].call(number, number=number))

    server.refuse = refuse_all_together  # type: ignore[method-assign]
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(call, number)
    return responses


async def test_a_hundred_refused_requests_restore_once_and_execute_once_each(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    claimed = 0
    claim_stream = proxy.store.claim_stream

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal claimed
        claimed += 1
        return await claim_stream(*args, **options)

    proxy.store.claim_stream = counted  # type: ignore[method-assign]
    await proxy.begin()
    server.forget()
    responses = await call_all([proxy], server, 100)
    assert claimed == 1
    assert {each.status_code for each in responses} == {200}
    assert sorted(each["number"] for each in server.executed) == list(range(100))
    assert server.methods.count("initialize") == server.methods.count("ping") == 1
    assert requests_of(proxy) == (101, 101, 103)


async def test_refused_requests_that_hold_all_connections_do_not_block_it(
    upstream: ScriptedUpstream, server: ForgetfulServer
) -> None:
    async with proxied(upstream.url, max_connections=5, connect_timeout=1.0) as proxy:
        await proxy.begin()
        server.forget()
        responses = await call_all([proxy], server, 5)
        assert {each.status_code for each in responses} == {200}


async def test_a_refusal_longer_than_any_is_closed_as_well(
    upstream: ScriptedUpstream, server: ForgetfulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[UpstreamResponse] = []
    closed: list[UpstreamResponse] = []
    send, aclose = Upstream.open, UpstreamResponse.aclose

    async def watched_open(self: Upstream, outbound: OutboundRequest) -> UpstreamResponse:
        opened.append(await send(self, outbound))
        return opened[-1]

    async def watched_aclose(self: UpstreamResponse) -> None:
        closed.append(self)
        await aclose(self)

    monkeypatch.setattr(Upstream, "open", watched_open)
    monkeypatch.setattr(UpstreamResponse, "aclose", watched_aclose)
    server.refusal = Refusal("404 Not Found", b"Session not found" + b" " * 1_000_000, TEXT)
    async with proxied(upstream.url, max_connections=2, connect_timeout=1.0) as proxy:
        await proxy.begin()
        for _ in range(3):
            server.forget()
            assert (await proxy.call()).status_code == 200
    assert len(opened) == 1 + 3 * 5
    assert all(each in closed for each in opened)


async def test_refused_requests_share_the_failure_too(proxy: Proxied, server: ForgetfulServer) -> None:
    await proxy.begin()
    server.forget()
    begun = anyio.Event()

    async def fail(received: Received, connection: Connection) -> None:
        await begun.wait()
        await connection.respond(status="503 Service Unavailable")

    server.initialize = fail  # type: ignore[method-assign]
    restorer = proxy.service.proxies["default"].restorer
    single_flight, waiting = restorer._single_flight, 0

    async def counted(session: Session, request: ClientRequest) -> Session | None:
        nonlocal waiting
        waiting += 1
        if waiting == 10:
            begun.set()
        return await single_flight(session, request)

    restorer._single_flight = counted  # type: ignore[method-assign]
    responses = await call_all([proxy], server, 10)
    assert {each.status_code for each in responses} == {502}
    assert server.methods.count("initialize") == 1


async def test_a_session_that_ends_while_it_is_restored_has_ended(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    initialize = server.initialize

    async def end(received: Received, connection: Connection) -> None:
        await proxy.store.delete_session(proxy.session_id)
        await initialize(received, connection)

    server.initialize = end  # type: ignore[method-assign]
    assert (await proxy.call()).status_code == 404
    assert server.ended == ["upstream-2"]
    assert server.executed == []


async def test_a_store_that_is_down_restores_nothing_and_ends_nothing(
    proxy: Proxied, server: ForgetfulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("down")

    await proxy.begin()
    for name, recovered in (("claim_stream", 0), ("update_session", 3)):
        server.forget()
        with monkeypatch.context() as patch:
            patch.setattr(proxy.store, name, refuse)
            response = await proxy.call()
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert len([each for each in server.methods if each in RECOVERY]) == recovered
    assert server.ended == ["upstream-2"]
    assert (await proxy.call()).status_code == 200


async def test_two_replicas_restore_once(
    upstream: ScriptedUpstream, server: ForgetfulServer, stores: list[SessionStore]
) -> None:
    async with proxied(upstream.url, stores[0]) as one, proxied(upstream.url, stores[1]) as other:
        await one.begin()
        other.session_id = one.session_id
        assert (await other.call()).status_code == 200
        server.forget()
        server.executed.clear()
        responses = await call_all([one, other], server, 20)
        assert {each.status_code for each in responses} == {200}
        assert server.methods.count("initialize") == 1
        assert sorted(each["number"] for each in server.executed) == list(range(20))
        assert await one.store.get_stream_claim(one.session_id, "~restore") is None
        assert one.service.counters.sessions_restored + other.service.counters.sessions_restored == 1


async def test_a_replica_that_has_not_heard_of_it_takes_over_what_the_other_restored(
    upstream: ScriptedUpstream, server: ForgetfulServer, stores: list[SessionStore]
) -> None:
    async with (
        proxied(upstream.url, stores[0], session_cache=60) as one,
        proxied(upstream.url, stores[1], session_cache=60) as other,
    ):
        await one.begin()
        other.session_id = one.session_id
        await other.call()
        server.forget()
        await one.call()
        upstream.received.clear()
        assert (await other.call()).status_code == 200
        assert server.methods == ["tools/call", "tools/call"]
        assert (await other.call()).status_code == 200
        assert server.methods == ["tools/call"] * 3


async def test_a_claim_that_ran_out_loses_by_compare_and_set(proxy: Proxied, server: ForgetfulServer) -> None:
    """Another replica has restored it meanwhile: its session is used, and ours upstream is ended."""
    await proxy.begin()
    server.forget()
    sessions = proxy.service.proxies["default"].sessions
    update = sessions.update

    async def late(session: Session, change: Callable[[Session], Session]) -> Session | None:
        server.live.add("the other's")
        found = await proxy.store.get_session(session.id)
        assert found is not None
        await update(found, lambda each: type(each)(**_fields(each) | {"upstream_session_id": "the other's"}))
        return await update(session, change)

    sessions.update = late  # type: ignore[method-assign]
    assert (await proxy.call()).status_code == 200
    assert await upstream_id(proxy) == "the other's"
    assert server.ended == ["upstream-2"]
    assert proxy.service.counters.sessions_restored == 0


def _fields(session: Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in session.__struct_fields__}


async def test_a_client_that_leaves_while_restoring_leaves_it_to_the_next(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    asked, left = anyio.Event(), anyio.Event()
    initialize = server.initialize

    async def hang_once(received: Received, connection: Connection) -> None:
        server.initialize = initialize  # type: ignore[method-assign]
        asked.set()
        await connection.peer_left()
        left.set()

    server.initialize = hang_once  # type: ignore[method-assign]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            async with raw_client(proxy.url) as (_, writer):
                message = request("tools/call", 1, {"from": "the one that leaves"})
                writer.write(raw_request(proxy.url, "POST", message, Mcp_Session_Id=proxy.session_id))
                await asked.wait()
                tasks.start_soon(proxy.call, 2)
            await left.wait()
    assert server.begun == 2
    assert server.executed == [{}]


# -- not restored ---------------------------------------------------------------------------------------


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
