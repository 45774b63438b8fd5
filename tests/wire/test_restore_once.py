"""A session is restored once: for all requests, for all replicas, whoever leaves or fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from shadowcat.inbound import ClientRequest
from shadowcat.owners import Owners
from shadowcat.upstream import OutboundRequest, Upstream, UpstreamResponse
from shadowcat_stores import Session, SessionStore, StoreUnavailable
from tests.support.forgetful import (
    RECOVERY,
    TEXT,
    ForgetfulServer,
    Refusal,
    call_all,
    requests_of,
    upstream_id,
)
from tests.support.proxying import Proxied, proxied, replica, request
from tests.support.raw import raw_client, raw_request
from tests.support.upstream import Connection, Received, ScriptedUpstream


async def test_a_hundred_refused_requests_restore_once_and_execute_once_each(
    proxy: Proxied, server: ForgetfulServer
) -> None:
    await proxy.begin()
    server.forget()
    responses = await call_all([proxy], server, 100)
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
    assert all(each in closed for each in opened if each.status == 404)


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
    upstream: ScriptedUpstream,
    stores: list[SessionStore],
    server: ForgetfulServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("down")

    async with replica(upstream.url, stores[0]) as proxy:
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
    async with replica(upstream.url, stores[0]) as one, replica(upstream.url, stores[1]) as other:
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


async def test_two_replicas_without_a_record_agree_by_compare_and_set(
    upstream: ScriptedUpstream,
    server: ForgetfulServer,
    stores: list[SessionStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shadowcat.owners.Owners._touch", _never)
    async with proxied(upstream.url, stores[0]) as one, proxied(upstream.url, stores[1]) as other:
        await one.begin()
        other.session_id = one.session_id
        assert (await other.call()).status_code == 200
        server.forget()
        server.executed.clear()
        responses = await call_all([one, other], server, 20)
        assert {each.status_code for each in responses} == {200}
        assert sorted(each["number"] for each in server.executed) == list(range(20))
        assert set(server.ended) == server.live - {await upstream_id(one)}


async def test_a_replica_that_died_while_restoring_holds_up_nobody(
    upstream: ScriptedUpstream, server: ForgetfulServer, stores: list[SessionStore]
) -> None:
    with anyio.fail_after(10):
        async with replica(upstream.url, stores[0]) as proxy:
            await proxy.begin()
            await proxy.store.claim_stream(proxy.session_id, "~restore", owner="dead", lease=15)
            server.forget()
            assert (await proxy.call()).status_code == 200


async def _never(owners: Owners) -> None:
    await anyio.sleep_forever()


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


@pytest.mark.parametrize("proxy", [{"adopt_seconds": 0}], indirect=True)
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
