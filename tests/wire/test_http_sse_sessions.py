"""The sessions of HTTP+SSE: whose they are, what the store has of them, and how they end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat.eras.endpoint_stream import EndpointResponse
from shadowcat_stores import MemoryStore, Session, SessionStore, SQLiteStore, StoreLimits, StoreUnavailable
from tests.support.events import message
from tests.support.http_sse import RESULT, SSEServer, ended, listening, path
from tests.support.proxying import INITIALIZE, Proxied, proxied, replica, request
from tests.support.raw import raw_client, raw_request
from tests.support.told import cancelled
from tests.support.upstream import ScriptedUpstream, result

CALL = request("tools/call", "c-1", {"n": 1})
AMBIGUOUS = {"reason": "ambiguous_delivery"}


@pytest.fixture
def server(upstream: ScriptedUpstream) -> SSEServer:
    return SSEServer(upstream)


@pytest.fixture
async def proxy(request: pytest.FixtureRequest, server: SSEServer) -> AsyncIterator[Proxied]:
    async with proxied(server.upstream.url, **getattr(request, "param", {})) as running:
        yield running


# -- the record and the tape ----------------------------------------------------------------------------


async def test_the_session_is_in_the_store_and_both_directions_are_on_its_tape(
    proxy: Proxied, server: SSEServer
) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.begin()
            await client.post(CALL)
            await client.events.next()
            session = await proxy.store.get_session(client.session_id)
            tape = [
                (each.direction, each.envelope.kind, each.envelope.method, each.stream, each.position)
                for each in await proxy.tape(client.session_id)
            ]
    assert session is not None
    assert (session.upstream, session.message_endpoint) == ("default", path(1).decode())
    assert (session.upstream_session_id, session.protocol_version) == (None, "2024-11-05")
    assert json.loads(session.initialize) == INITIALIZE["params"]
    assert json.loads(session.server_info) == RESULT["serverInfo"]
    assert json.loads(session.server_capabilities) == RESULT["capabilities"]
    assert tape == [
        ("client", "request", "initialize", "get", 0),
        ("server", "response", None, "get", 1),
        ("client", "notification", "notifications/initialized", None, 0),
        ("client", "request", "tools/call", "get", 0),
        ("server", "response", None, "get", 2),
    ]


@pytest.mark.parametrize("proxy", [{"tape": "off"}, {"session_ids": "upstream"}], indirect=True)
async def test_it_works_with_other_settings(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.begin()
            await client.post(CALL)
            assert message(await client.events.next())["result"] == {"n": 1}
            await server.streams[1].end_stream()
            assert await client.events.rest() == []


async def test_a_server_that_asks_is_answered_in_the_same_session(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as other, listening(proxy) as client:
            await server.say(server.streams[2], json.dumps(request("roots/list", 0)).encode())
            assert message(await client.events.next())["method"] == "roots/list"
            answer = {"jsonrpc": "2.0", "id": 0, "result": {"roots": []}}
            server.kept.add("")
            assert (await client.post({**answer, "method": ""})).status_code == 202
            assert other.endpoint != client.endpoint
    assert server.posted[0].target.encode() == path(2)


@pytest.mark.parametrize("proxy", [{"session_ttl": 0.5}], indirect=True)
async def test_the_session_lives_as_long_as_its_stream(proxy: Proxied) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            session = await proxy.store.get_session(client.session_id)
            while session is not None and proxy.store.clock() < session.created_at + 0.6:
                await anyio.lowlevel.checkpoint()
            assert await proxy.store.get_session(client.session_id) is not None


async def test_a_replica_that_is_killed_does_not_leave_the_record_for_long(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Nobody can come back to the session: what keeps it alive is the replica that has its stream."""
    SSEServer(upstream)
    now = time.time()
    store = SQLiteStore(tmp_path / "s.db", clock=lambda: now)
    with anyio.fail_after(5):
        async with replica(upstream.url, store) as proxy, listening(proxy) as client:
            session = await store.get_session(client.session_id)
            assert session is not None
            assert session.expires_at == now + 600
            now += 100
            await client.post(CALL)
            session = await store.get_session(client.session_id)
            assert session is not None
            assert session.expires_at == now + 600


# -- whose it is ----------------------------------------------------------------------------------------


async def test_somebody_elses_session_is_an_unknown_one(proxy: Proxied, server: SSEServer) -> None:
    async with listening(proxy, Authorization="Bearer alice") as client:
        for credential in ("Bearer mallory", ""):
            refused = await client.post(CALL, Authorization=credential)
            assert refused.status_code == 404
            assert refused.json()["error"]["data"]["reason"] == "session_unknown"
        assert server.posted == []
        assert (await client.post(CALL)).status_code == 202


async def test_a_session_belongs_to_its_upstream_and_its_transport(upstream: ScriptedUpstream) -> None:
    server = SSEServer(upstream)
    plain = upstream.url.replace("/v1/sse", "/mcp")
    async with proxied({"one": upstream.url, "two": upstream.url, "plain": plain}) as proxy:
        proxy.path = "/one/mcp"
        async with listening(proxy) as client:
            own, client.endpoint = client.endpoint, client.endpoint.replace("/one/", "/two/")
            assert (await client.post(CALL)).status_code == 404
            proxy.session_id = client.session_id
            assert (await proxy.post(CALL)).status_code == 404
            proxy.session_id = ""
            # One of Streamable HTTP has no address for messages.
            session = await proxy.store.get_session(client.session_id)
            assert session is not None
            now = session.created_at
            await proxy.store.create_session(
                Session(id="s", created_at=now, expires_at=now + 9, upstream="one")
            )
            client.endpoint = "/one/messages?session_id=s"
            assert (await client.post(CALL)).status_code == 404
            for query in ("", "?session_id=", "?session_id=a&session_id=b", "?sessionId=a"):
                client.endpoint = "/one/messages" + query
                refused = await client.post(CALL)
                assert refused.status_code == 400
                assert refused.json()["error"]["data"]["reason"] == "session_required"
            assert server.posted == []
            client.endpoint = own
            assert (await client.post(CALL)).status_code == 202


# -- its end --------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_session_here_and_at_the_server(
    proxy: Proxied, server: SSEServer
) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.begin()
        await server.left.wait()
        await ended(proxy)
        assert await proxy.store.count_sessions() == 0
        gone = await client.post(CALL)
    assert gone.status_code == 404
    assert gone.json()["error"]["data"]["reason"] == "session_unknown"
    assert len(server.posted) == 2


async def test_a_client_that_leaves_before_the_first_event_ends_the_stream(
    proxy: Proxied, server: SSEServer
) -> None:
    server.endpoint = lambda number: b": wait\n\n"
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (_, writer):
            writer.write(raw_request(proxy.url, "GET"))
            while not server.streams:
                await anyio.lowlevel.checkpoint()
        await server.left.wait()
        await ended(proxy)


async def test_a_stream_that_the_server_ends_is_a_clean_end(proxy: Proxied, server: SSEServer) -> None:
    server.kept = {"tools/call"}
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            for request_id in (1, "cancelled", 3):
                await client.post(request("tools/call", request_id))
            await client.post(cancelled("cancelled"))
            await server.say(server.streams[1], result(1, {}))
            await server.streams[1].end_stream()
            answer, lost = await client.events.rest()
        await ended(proxy)
    assert message(answer) == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (message(lost)["id"], message(lost)["error"]["data"]) == (3, AMBIGUOUS)
    assert await proxy.store.count_sessions() == 0


async def test_a_stream_that_breaks_never_looks_complete(proxy: Proxied, server: SSEServer) -> None:
    server.kept = {"tools/call"}
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.post(CALL)
            server.streams[1].cut()
            lost = await client.events.next()
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.events.next()
        await ended(proxy)
    assert (message(lost)["id"], message(lost)["error"]["data"]) == ("c-1", AMBIGUOUS)
    assert await proxy.store.count_sessions() == 0


async def test_a_stream_that_breaks_before_its_first_event_has_a_status(
    proxy: Proxied, server: SSEServer
) -> None:
    async def broken(received: Any, connection: Any) -> None:
        await connection.start_stream()
        connection.cut()

    server.upstream.handshake = broken
    async with proxy.stream("GET") as response:
        assert response.status_code == 502


async def test_an_empty_stream_passes(proxy: Proxied, server: SSEServer) -> None:
    async def empty(received: Any, connection: Any) -> None:
        await connection.respond(b"", ("Content-Type", "text/event-stream"))

    server.upstream.handshake = empty
    async with proxy.stream("GET") as response:
        assert (response.status_code, await response.aread()) == (200, b"")


async def test_a_refused_message_is_not_missed(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            server.refusal = ("503 Service Unavailable", b"later")
            assert (await client.post(CALL)).status_code == 503
            await server.streams[1].end_stream()
            assert await client.events.rest() == []


async def test_a_message_whose_fate_is_unknown_is_sent_once(proxy: Proxied, server: SSEServer) -> None:
    async with listening(proxy) as client:
        answer = server.answer

        async def lose(received: Any, connection: Any) -> None:
            if received.method == "POST":
                connection.cut()
            else:
                await answer(received, connection)

        server.upstream.handshake = lose
        response = await client.post(CALL)
    assert response.status_code == 502
    assert response.json()["id"] == "c-1"
    assert response.json()["error"]["data"] == AMBIGUOUS
    assert [each.method for each in server.upstream.received] == ["GET", "POST"]


# -- the server stops -----------------------------------------------------------------------------------


async def test_stopping_ends_a_stream_that_misses_nothing(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.begin()
            proxy.service.drain()
            assert await client.events.rest() == []
        await ended(proxy)
    assert await proxy.store.count_sessions() == 0


async def test_stopping_waits_for_the_last_answer(proxy: Proxied, server: SSEServer) -> None:
    server.kept = {"tools/call"}
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.post(CALL)
            proxy.service.drain()
            await server.say(server.streams[1], result("c-1", {}))
            (answer,) = await client.events.rest()
    assert message(answer)["result"] == {}


@pytest.mark.parametrize("proxy", [{"shutdown_grace": 0.05}], indirect=True)
async def test_stopping_waits_no_longer_than_its_grace(proxy: Proxied, server: SSEServer) -> None:
    server.kept = {"tools/call"}
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.post(CALL)
            proxy.service.drain()
            (lost,) = await client.events.rest()
    assert message(lost)["error"]["data"] == AMBIGUOUS


async def test_stopping_forgets_what_was_cancelled(proxy: Proxied, server: SSEServer) -> None:
    server.kept = {"tools/call"}
    with anyio.fail_after(5):
        async with listening(proxy) as client:
            await client.post(CALL)
            proxy.service.drain()
            await client.post(cancelled())
            assert await client.events.rest() == []


async def test_stopping_before_the_first_event_says_so(proxy: Proxied, server: SSEServer) -> None:
    server.endpoint = lambda number: b""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:

            async def drain() -> None:
                while not proxy.service.streams:
                    await anyio.lowlevel.checkpoint()
                proxy.service.drain()

            tasks.start_soon(drain)
            async with proxy.stream("GET") as response:
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"


# -- silence, and slow clients --------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", [{"stream_keepalive": 0.02}], indirect=True)
async def test_a_silent_stream_is_kept_alive(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, "GET"))
            assert await reader.readuntil(b"session_id=")
            for _ in range(3):
                await reader.readuntil(b"\r\n:\n\n\r\n")


@pytest.mark.parametrize("proxy", [{"stream_keepalive": 0.02, "max_message_bytes": 1000}], indirect=True)
async def test_a_comment_never_stands_in_an_event(proxy: Proxied, server: SSEServer) -> None:
    with anyio.fail_after(5):
        async with raw_client(proxy.url) as (reader, writer):
            writer.write(raw_request(proxy.url, "GET"))
            await reader.readuntil(b"session_id=")
            await reader.readuntil(b":\n\n")
            await server.streams[1].chunk(b"data: " + b"x" * 2000)
            await reader.readuntil(b"data: x")
            silence = anyio.current_time()
            while anyio.current_time() < silence + 0.1:
                await anyio.lowlevel.checkpoint()
            await server.streams[1].chunk(b"y\n\n")
            assert b":" not in await reader.readuntil(b"y\n\n")
            (session,) = (await proxy.store.list_sessions()).sessions
            assert [each.envelope.kind for each in await proxy.tape(session.id)] == ["gap"]


async def test_a_slow_client_stops_the_server(proxy: Proxied, server: SSEServer) -> None:
    event = b"data: " + b"x" * 100_000 + b"\n\n"
    with anyio.fail_after(10):
        async with raw_client(proxy.url, receive_buffer=4096) as (reader, writer):
            writer.write(raw_request(proxy.url, "GET"))
            await reader.readuntil(b"session_id=")
            sent = 0
            with anyio.move_on_after(1) as stalled:
                while sent < 500:
                    await server.streams[1].chunk(event)
                    sent += 1
            assert stalled.cancelled_caught, "50 MB went somewhere"
        await server.left.wait()
        await ended(proxy)


# -- the store ------------------------------------------------------------------------------------------


async def test_a_store_that_takes_no_session_is_said_so(upstream: ScriptedUpstream) -> None:
    server = SSEServer(upstream)
    store = MemoryStore(limits=StoreLimits(sessions=1))
    async with proxied(upstream.url, store) as proxy, listening(proxy):
        async with proxy.stream("GET") as response:
            assert response.status_code == 503
            assert response.headers["retry-after"] == "2"
        with anyio.fail_after(5):
            while 2 in server.streams:
                await anyio.lowlevel.checkpoint()


async def test_a_store_that_fails_later_costs_no_answer(upstream: ScriptedUpstream) -> None:
    class ReadOnly(MemoryStore):
        async def update_session(self, session: Session) -> Session:
            raise StoreUnavailable("down")

    SSEServer(upstream)
    with anyio.fail_after(5):
        async with proxied(upstream.url, ReadOnly()) as proxy, listening(proxy) as client:
            await client.begin()
            await client.post(CALL)
            assert message(await client.events.next())["result"] == {"n": 1}


# -- replicas -------------------------------------------------------------------------------------------


async def test_messages_may_come_in_at_another_replica(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    server = SSEServer(upstream)
    with anyio.fail_after(20):
        async with replica(upstream.url, stores[0]) as here, replica(upstream.url, stores[1]) as there:
            async with listening(here, Authorization="Bearer alice") as client:
                await client.begin(there)
                await client.post(CALL, there)
                assert message(await client.events.next())["result"] == {"n": 1}
                assert (await client.post(CALL, there, Authorization="Bearer mallory")).status_code == 404
                await there.service.recorder.flush()
                tape = await here.tape(client.session_id)
                session = await there.store.get_session(client.session_id)
            await ended(here)
            assert await there.store.get_session(client.session_id) is None
    assert [each.envelope.method for each in tape if each.direction == "client"] == [
        "initialize",
        "notifications/initialized",
        "tools/call",
    ]
    assert [each.seq for each in tape] == list(range(1, 6))
    assert session is not None
    assert session.protocol_version == "2024-11-05"
    assert session.initialize
    assert len(server.posted) == 3


async def test_what_came_in_at_another_replica_is_missed_too(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    server = SSEServer(upstream, kept={"tools/call"})
    stores = [SQLiteStore(tmp_path / "s.db") for _ in range(2)]
    with anyio.fail_after(20):
        async with (
            replica(upstream.url, stores[0]) as here,
            replica(upstream.url, stores[1]) as there,
            listening(here) as client,
        ):
            await client.begin()
            await client.post(CALL, there)
            await there.service.recorder.flush()
            await server.streams[1].end_stream()
            (lost,) = await client.events.rest()
    assert (message(lost)["id"], message(lost)["error"]["data"]) == ("c-1", AMBIGUOUS)


@pytest.mark.parametrize("answered", ["at once", "in the end"])
async def test_stopping_waits_for_answers_to_what_came_in_at_another_replica(
    upstream: ScriptedUpstream, tmp_path: Path, answered: str
) -> None:
    server = SSEServer(upstream, kept={"tools/call"})
    stores = [SQLiteStore(tmp_path / "s.db") for _ in range(2)]
    with anyio.fail_after(20):
        async with (
            replica(upstream.url, stores[0], shutdown_grace=600) as here,
            replica(upstream.url, stores[1]) as there,
            listening(here) as client,
        ):
            await client.begin()
            for request_id in ("cancelled", "c-1"):
                await client.post(request("tools/call", request_id), there)
            await client.post(cancelled("cancelled"), there)
            here.service.drain()
            if answered == "in the end":
                (stream,) = here.service.streams.endpoints.values()
                assert isinstance(stream, EndpointResponse)
                while stream._expected != {"c-1"}:
                    await anyio.lowlevel.checkpoint()
            await server.say(server.streams[1], result("c-1", {}))
            (answer,) = await client.events.rest()
    assert message(answer) == {"jsonrpc": "2.0", "id": "c-1", "result": {}}


async def test_a_session_that_is_deleted_elsewhere_ends_its_stream(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    server = SSEServer(upstream, kept={"tools/call"})
    with anyio.fail_after(20):
        async with replica(upstream.url, SQLiteStore(tmp_path / "s.db")) as proxy:
            async with listening(proxy) as client:
                await client.begin()
                await client.post(CALL)
                await proxy.store.delete_session(client.session_id)
                await proxy.service.streams.look_after()
                assert await client.events.rest() == []
            await server.left.wait()


async def test_a_store_that_breaks_the_contract_leaves_no_connection_open(upstream: ScriptedUpstream) -> None:
    class Broken(MemoryStore):
        async def update_session(self, session: Session) -> Session:
            raise RuntimeError("not among the errors of a store")

    server = SSEServer(upstream, kept={"initialize"})
    with anyio.fail_after(5):
        async with proxied(upstream.url, Broken()) as proxy, listening(proxy) as client:
            assert (await client.post(INITIALIZE)).status_code == 500
            while upstream.connections > 1:
                await anyio.lowlevel.checkpoint()
            assert list(server.streams) == [1]
