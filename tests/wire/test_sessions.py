"""Sessions: ours towards the client, the upstream's towards the upstream, and nobody else's."""

from __future__ import annotations

import base64
import json
import re

import anyio
import msgspec
import pytest

from shadowcat_stores import MemoryStore, Session, StoreLimits, StoreUnavailable
from tests.support.proxying import INITIALIZE, Proxied, proxied, request
from tests.support.upstream import INITIALIZE_RESULT, SESSION, Connection, Received, ScriptedUpstream, result


def jwt(**claims: str) -> str:
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2ln"])


async def stored(proxy: Proxied) -> Session:
    session = await proxy.store.get_session(proxy.session_id)
    assert session is not None
    return session


async def test_the_client_gets_our_id_and_the_upstream_its_own(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin()
    assert proxy.session_id != SESSION
    assert re.fullmatch(r"[\x21-\x7e]{22,}", proxy.session_id)  # 128 bits take 22 base64 characters
    response = await proxy.call()
    assert response.headers["mcp-session-id"] == proxy.session_id
    assert upstream.received[0].header(b"mcp-session-id") is None
    assert upstream.received[1].header(b"mcp-session-id") == SESSION.encode()


async def test_the_session_remembers_what_initialize_agreed_on(proxy: Proxied) -> None:
    await proxy.begin()
    session = await stored(proxy)
    assert session.upstream_session_id == SESSION
    assert session.protocol_version == "2025-11-25"
    assert json.loads(session.initialize) == INITIALIZE["params"]
    assert json.loads(session.server_info) == INITIALIZE_RESULT["serverInfo"]


async def test_the_session_is_stored_before_the_answer_leaves(upstream: ScriptedUpstream) -> None:
    """The upstream answers with a stream: its headers must not reach the client without a session."""
    moments: list[str] = []

    class Watched(MemoryStore):
        async def create_session(self, session: Session) -> Session:
            moments.append("stored")
            return await super().create_session(session)

    async def answer(received: Received, connection: Connection) -> None:
        await connection.start_stream(("Mcp-Session-Id", SESSION))
        await connection.chunk(b"id: 0\ndata:\n\n")
        await connection.chunk(b"data: " + result("init-1", INITIALIZE_RESULT) + b"\n\n")
        await connection.end_stream()

    upstream.handshake = answer
    async with proxied(upstream.url, Watched()) as proxy, proxy.stream("POST", INITIALIZE) as response:
        moments.append("headers")
        body = b"".join([chunk async for chunk in response.aiter_raw()])
        assert moments == ["stored", "headers"]
        prime, answered, rest = body.split(b"\n\n")
        assert (prime, rest) == (b"id: 0\ndata:", b"")
        assert answered.endswith(b"-2\ndata: " + result("init-1", INITIALIZE_RESULT))
        session = await proxy.store.get_session(response.headers["mcp-session-id"])
        assert session is not None
        assert session.protocol_version == "2025-11-25"
        tape = await proxy.tape(session.id)
        assert [frame.envelope.kind for frame in tape] == ["request", "other", "response"]


@pytest.mark.parametrize("tape", ["off", "window"])
async def test_a_server_without_session_ids_still_has_a_proxy_session(
    upstream: ScriptedUpstream, tape: str
) -> None:
    upstream.session = None
    async with proxied(upstream.url, tape=tape) as proxy:
        await proxy.begin()
        assert (await proxy.call()).status_code == 200
        assert (await stored(proxy)).upstream_session_id is None
        assert upstream.received[-1].header(b"mcp-session-id") is None
        assert len(await proxy.tape()) == (0 if tape == "off" else 4)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("200 OK", {"jsonrpc": "2.0", "id": "init-1", "error": {"code": -32602, "message": "version"}}),
        ("400 Bad Request", {"jsonrpc": "2.0", "id": "init-1", "error": {"code": -32602, "message": "no"}}),
        ("401 Unauthorized", {}),
    ],
)
async def test_a_refused_initialize_leaves_no_session(
    proxy: Proxied, upstream: ScriptedUpstream, status: str, body: dict[str, object]
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        headers = (("Content-Type", "application/json"), ("Mcp-Session-Id", SESSION))
        await connection.respond(json.dumps(body).encode(), *headers, status=status)

    upstream.handshake = refuse
    response = await proxy.post(INITIALIZE)
    assert response.status_code == int(status[:3])
    assert response.json() == body
    assert "mcp-session-id" not in response.headers
    assert await proxy.store.count_sessions() == 0


async def test_an_answer_that_cannot_be_read_along_still_begins_a_session(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def answer(received: Received, connection: Connection) -> None:
        headers = (("Content-Type", "application/json"), ("Content-Encoding", "br"))
        await connection.respond(b"\x0b\x02\x80hello\x03", *headers)

    upstream.handshake = answer
    async with proxy.stream("POST", INITIALIZE) as response:
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == b"\x0b\x02\x80hello\x03"
    session = await proxy.store.get_session(response.headers["mcp-session-id"])
    assert session is not None
    assert session.protocol_version is None


async def test_an_endless_initialize_answer_is_not_held_back_for_ever(upstream: ScriptedUpstream) -> None:
    async def answer(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b"data: " + b"x" * 5000)
        await connection.peer_left()

    upstream.handshake = answer
    async with (
        proxied(upstream.url, max_message_bytes=1000) as proxy,
        proxy.stream("POST", INITIALIZE) as response,
    ):
        assert response.headers["mcp-session-id"]


async def test_delete_ends_both_sessions(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    await proxy.begin()
    async with proxy.stream("DELETE") as response:
        assert response.status_code == 200
    assert upstream.received[-1].method == "DELETE"
    assert upstream.received[-1].header(b"mcp-session-id") == SESSION.encode()
    assert await proxy.store.get_session(proxy.session_id) is None
    assert (await proxy.call()).status_code == 404
    assert len(upstream.received) == 2


@pytest.mark.parametrize(("status", "kept"), [("405 Method Not Allowed", True), ("404 Not Found", False)])
async def test_a_delete_the_upstream_refuses(
    proxy: Proxied, upstream: ScriptedUpstream, status: str, kept: bool
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(status=status)

    await proxy.begin()
    upstream.script = refuse
    async with proxy.stream("DELETE") as response:
        assert response.status_code == int(status[:3])
    assert (await proxy.store.get_session(proxy.session_id) is not None) is kept


async def test_unknown_and_missing_sessions_never_reach_the_upstream(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    assert (await proxy.call()).status_code == 400
    async with proxy.stream("DELETE") as response:
        assert response.status_code == 400
    proxy.session_id = SESSION
    for method in ("GET", "DELETE"):
        async with proxy.stream(method) as response:
            assert response.status_code == 404
    response = await proxy.call(request_id="q-7")
    assert response.status_code == 404
    assert response.json() == {
        "jsonrpc": "2.0",
        "id": "q-7",
        "error": {
            "code": -32600,
            "message": "Session not found. Start a new one with initialize.",
            "data": {"reason": "session_unknown"},
        },
    }
    assert upstream.received == []


async def test_an_expired_session_is_unknown_and_use_keeps_it_alive(upstream: ScriptedUpstream) -> None:
    now = 1_000_000.0
    store = MemoryStore(clock=lambda: now)
    async with proxied(upstream.url, store, session_ttl=100) as proxy:
        await proxy.begin()
        for _ in range(3):
            now += 90
            assert (await proxy.call()).status_code == 200
        now += 101
        assert (await proxy.call()).status_code == 404


async def test_a_session_belongs_to_its_upstream(upstream: ScriptedUpstream) -> None:
    async with proxied({"one": upstream.url, "two": upstream.url}) as proxy:
        assert (await proxy.client.post(proxy.url)).status_code == 404  # no default upstream
        proxy.path = "/one/mcp"
        await proxy.begin()
        assert (await proxy.call()).status_code == 200
        proxy.path = "/two/mcp"
        assert (await proxy.call()).status_code == 404


async def test_the_upstreams_own_ids_can_be_shown(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, session_ids="upstream") as proxy:
        await proxy.begin()
        assert proxy.session_id == SESSION
        assert (await proxy.call()).status_code == 200
        assert (await stored(proxy)).id == SESSION
        again = await proxy.client.post(proxy.url, json=INITIALIZE)
        assert again.status_code == 502  # the upstream gave an id that is in use
        proxy.session_id = "somebody-else"
        assert (await proxy.call()).status_code == 404


async def test_with_the_upstreams_ids_a_server_without_them_judges_itself(upstream: ScriptedUpstream) -> None:
    upstream.session = None
    async with proxied(upstream.url, session_ids="upstream") as proxy:
        response = await proxy.post(INITIALIZE)
        assert "mcp-session-id" not in response.headers
        assert (await proxy.call()).status_code == 200
        assert await proxy.sessions() == []


@pytest.mark.parametrize("where", ["header", "body"])
async def test_stateless_requests_pass_without_a_session(
    proxy: Proxied, upstream: ScriptedUpstream, where: str
) -> None:
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    message = request("server/discover", 1, {"_meta": meta} if where == "body" else {})
    headers = (
        {"MCP_Protocol_Version": "2026-07-28", "Mcp_Method": "server/discover"} if where == "header" else {}
    )
    response = await proxy.post(message, **headers)
    assert response.status_code == 200
    assert "mcp-session-id" not in response.headers
    assert await proxy.sessions() == []
    if where == "header":
        assert upstream.received[-1].header(b"mcp-protocol-version") == b"2026-07-28"
        # The revision ignores the header, so it does not pass: it could name somebody's session upstream.
        proxy.session_id = SESSION
        assert (await proxy.post(message, **headers)).status_code == 200
        assert upstream.received[-1].header(b"mcp-session-id") is None


async def test_a_foreign_principal_gets_the_answer_of_an_unknown_session(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="Bearer alice")
    assert (await proxy.post(request("ping"), Authorization="Bearer alice")).status_code == 200
    upstream.received.clear()
    known = [
        await proxy.post(request("ping"), **credentials)
        for credentials in ({"Authorization": "Bearer bob"}, {}, {"X_Api_Key": "alice"})
    ]
    proxy.session_id = "no-such-session"
    unknown = await proxy.post(request("ping"), Authorization="Bearer bob")
    for response in known:
        assert (response.status_code, response.content) == (unknown.status_code, unknown.content)
        assert response.headers == unknown.headers
    assert unknown.status_code == 404
    assert upstream.received == []


async def test_decisive_headers_that_stand_twice_are_refused(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="Bearer alice")
    sent = [
        ("Authorization", "Bearer alice"),
        ("Mcp-Session-Id", proxy.session_id),
        ("Origin", "http://localhost"),
        ("Content-Type", "application/json"),
    ]
    for repeated in (
        ("authorization", "Bearer bob"),
        ("mcp-session-id", "x"),
        ("ORIGIN", "https://evil.example"),
    ):
        content = json.dumps(request("ping"))
        response = await proxy.client.post(proxy.url, headers=[*sent, repeated], content=content)
        assert response.status_code == 400
        assert response.json()["error"]["data"]["reason"] == "repeated_header"
    assert upstream.forwarded == []


async def test_connection_cannot_strip_what_the_proxy_has_judged_by(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="Bearer alice")
    named = "Authorization, mcp-session-id, content-type"
    assert (
        await proxy.post(request("ping"), Authorization="Bearer alice", Connection=named)
    ).status_code == 200
    assert upstream.received[-1].header(b"authorization") == b"Bearer alice"
    assert upstream.received[-1].header(b"mcp-session-id") == SESSION.encode()


async def test_a_refreshed_jwt_of_the_same_subject_goes_on(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    await proxy.begin(Authorization="Bearer " + jwt(iss="https://as.example", sub="alice", jti="1"))
    refreshed = "Bearer " + jwt(iss="https://as.example", sub="alice", jti="2")
    assert (await proxy.post(request("ping"), Authorization=refreshed)).status_code == 200
    assert len((await stored(proxy)).credentials) == 2
    for foreign in (
        jwt(iss="https://as.example", sub="bob"),
        jwt(iss="https://other.example", sub="alice"),
        jwt(sub="alice"),
        "a.b.c",
    ):
        assert (await proxy.post(request("ping"), Authorization="Bearer " + foreign)).status_code == 404


async def test_a_credential_the_upstream_refuses_is_not_remembered(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(b"", ("WWW-Authenticate", "Bearer"), status="401 Unauthorized")

    await proxy.begin(Authorization="Bearer " + jwt(iss="i", sub="alice", jti="1"))
    upstream.script = refuse
    forged = await proxy.post(
        request("ping"), Authorization="Bearer " + jwt(iss="i", sub="alice", forged="1")
    )
    assert forged.status_code == 401
    assert len((await stored(proxy)).credentials) == 1


async def test_a_token_got_for_the_servers_challenge_goes_on_in_the_session(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    """One that says nothing of whose it is: otherwise each that expires would end its session."""

    async def judge(received: Received, connection: Connection) -> None:
        if received.header(b"authorization") == b"Bearer new":
            await connection.respond(result("x", {}), ("Content-Type", "application/json"))
        else:
            challenge = ("WWW-Authenticate", 'Bearer error="insufficient_scope"')
            await connection.respond(b"", challenge, status="403 Forbidden")

    await proxy.begin(Authorization="Bearer old")
    upstream.script = judge
    statuses = [
        (await proxy.post(request("ping"), Authorization=f"Bearer {token}")).status_code
        for token in ("new", "old", "bob", "new", "old", "new", "bob")
    ]
    assert statuses == [404, 403, 403, 200, 403, 200, 403]
    tokens = [each.header(b"authorization") for each in upstream.forwarded]
    assert tokens == [b"Bearer " + each for each in (b"old", b"bob", b"new", b"old", b"new", b"bob")]


async def test_a_session_begun_without_credentials_is_not_taken_over_by_one_who_has_some(
    proxy: Proxied,
) -> None:
    await proxy.begin()
    assert (await proxy.post(request("ping"), Authorization="Bearer alice")).status_code == 200
    assert (await proxy.post(request("ping"))).status_code == 200
    session = await stored(proxy)
    assert len(session.credentials) == 1
    assert "alice" not in str(session)


class ReadOnly(MemoryStore):
    """A store that is in trouble after the session has begun."""

    down = True

    async def update_session(self, session: Session) -> Session:
        raise StoreUnavailable("down")

    async def delete_session(self, session_id: str) -> bool:
        if self.down:
            raise StoreUnavailable("down")
        return await super().delete_session(session_id)


async def test_an_answer_is_not_lost_when_the_store_fails_after_it(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, ReadOnly()) as proxy:
        await proxy.begin()
        assert (await proxy.post(request("ping"), Authorization="Bearer alice")).status_code == 200
        async with proxy.stream("DELETE") as response:
            assert response.status_code == 200


async def test_a_session_that_the_store_could_not_delete_has_ended_and_is_deleted_later(
    upstream: ScriptedUpstream,
) -> None:
    store = ReadOnly()
    async with proxied(upstream.url, store, session_ttl=0.2) as proxy:
        store.clock = lambda: 0.0  # so that it is not its age that ends the session
        await proxy.begin()
        async with proxy.stream("DELETE"):
            pass
        asked = len(upstream.received)
        assert (await proxy.post(request("ping"))).status_code == 404
        assert len(upstream.received) == asked
        assert await store.count_sessions() == 1
        store.down = False
        with anyio.fail_after(5):
            while await store.count_sessions():
                await anyio.lowlevel.checkpoint()
        assert (await proxy.post(request("ping"))).status_code == 404


async def test_a_credential_is_remembered_beside_concurrent_updates(upstream: ScriptedUpstream) -> None:
    class Contended(MemoryStore):
        contended = 3

        async def update_session(self, session: Session) -> Session:
            if self.contended:
                self.contended -= 1
                current = await self.get_session(session.id)
                assert current is not None
                await super().update_session(
                    msgspec.structs.replace(current, labels={"n": str(self.contended)})
                )
            return await super().update_session(session)

    async with proxied(upstream.url, Contended()) as proxy:
        await proxy.begin()
        assert (await proxy.post(request("ping"), Authorization="Bearer alice")).status_code == 200
        session = await stored(proxy)
        assert (len(session.credentials), session.labels) == (1, {"n": "0"})


async def test_a_store_that_is_down_is_said_so(upstream: ScriptedUpstream) -> None:
    class Down(MemoryStore):
        async def get_session(self, session_id: str) -> Session | None:
            raise StoreUnavailable("down")

    async with proxied(upstream.url, Down()) as proxy:
        await proxy.begin()
        response = await proxy.call()
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert response.json()["error"]["data"]["reason"] == "store_down"
        # What needs no session goes on.
        modern = await proxy.post(request("server/discover"), MCP_Protocol_Version="2026-07-28")
        assert modern.status_code == 200
    assert len(upstream.forwarded) == 1


async def test_a_full_store_refuses_new_sessions_and_keeps_the_old(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, MemoryStore(limits=StoreLimits(sessions=1))) as proxy:
        await proxy.begin()
        refused = await proxy.client.post(proxy.url, json=INITIALIZE)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["error"]["data"]["reason"] == "store_down"
        assert (await proxy.call()).status_code == 200
