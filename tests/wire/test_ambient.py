"""Traffic without a session is on a tape, too: one for each upstream and principal, of no use to clients."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from shadowcat.ambient import is_ambient
from shadowcat_stores import (
    Frame,
    MemoryStore,
    Session,
    SQLiteStore,
    StoreLimits,
    StoreUnavailable,
    Window,
)
from tests.support.proxying import Proxied, proxied, request
from tests.support.upstream import Connection, Received, ScriptedUpstream, echo, result

MODERN = {"MCP_Protocol_Version": "2026-07-28"}
CALL = request("tools/call", 1, {"n": 1})


def jwt(subject: str, serial: int) -> str:
    parts = ({"alg": "none"}, {"iss": "https://issuer.example", "sub": subject, "jti": serial})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    return "Bearer " + ".".join((*encoded, "signature"))


async def the_one(proxy: Proxied) -> Session:
    (session,) = await proxy.sessions(ambient=True)
    return session


def said(frame: Frame) -> tuple[str, str, Any, str | None]:
    return frame.direction, frame.envelope.kind, frame.envelope.id, frame.envelope.method


# -- what is on it ------------------------------------------------------------------------------------------


async def test_requests_of_one_id_are_told_apart(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    """Each client counts from the same number: an answer is known by the stream that its request has."""
    both, waiting = anyio.Event(), 0

    async def script(received: Received, connection: Connection) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        await both.wait()
        if received.message["params"]["sse"]:
            await connection.start_stream()
            await connection.chunk(b'event: a\ndata: {"jsonrpc":"2.0","method":"n"}\n\n')
            await connection.chunk(b"id: x\ndata: %b\n\n" % result(1, received.message["params"]))
            await connection.end_stream()
        else:
            await echo(received, connection)

    upstream.script = script
    with anyio.fail_after(5):
        async with anyio.create_task_group() as calls:
            for sse in (False, True):
                message = request("tools/call", 1, {"sse": sse})
                calls.start_soon(partial(proxy.post, message, **MODERN))
    tape = await proxy.tape((await the_one(proxy)).id)
    streams: dict[str | None, list[Frame]] = {}
    for frame in tape:
        streams.setdefault(frame.stream, []).append(frame)
    assert len(streams) == 2
    for frames in streams.values():
        asked, *notified, answered = frames
        sse = json.loads(asked.envelope.raw)["params"]["sse"]
        assert said(asked) == ("client", "request", 1, "tools/call")
        assert said(answered) == ("server", "response", 1, None)
        assert json.loads(answered.envelope.raw)["result"] == {"sse": sse}
        assert [each.event for each in notified] == (["a"] if sse else [])
        assert [each.position for each in frames] == ([0, 1, 2] if sse else [0, 0])
        assert answered.event_id == ("x" if sse else None)


async def test_what_asks_for_no_answer_is_on_it(proxy: Proxied) -> None:
    for _ in range(2):
        response = await proxy.post({"jsonrpc": "2.0", "method": "notifications/x"}, **MODERN)
        assert response.status_code == 202
    tape = await proxy.tape((await the_one(proxy)).id)
    assert [(*said(frame), frame.stream) for frame in tape] == [
        ("client", "notification", None, "notifications/x", None)
    ] * 2


async def test_a_refusal_is_on_it_once_the_credentials_are_known(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    error = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}'

    async def refuse(received: Received, connection: Connection) -> None:
        await connection.respond(error, ("Content-Type", "application/json"), status="404 Not Found")

    upstream.script = refuse
    assert (await proxy.post(CALL, **MODERN)).content == error
    assert await proxy.sessions(ambient=True) == []  # a probe, as it may be
    upstream.script = echo
    await proxy.post(CALL, **MODERN)
    upstream.script = refuse
    assert (await proxy.post(CALL, **MODERN)).content == error
    tape = await proxy.tape((await the_one(proxy)).id)
    assert [frame.envelope.kind for frame in tape] == ["request", "response", "request", "error"]


async def test_the_end_of_a_subscription_that_the_proxy_writes_is_on_it(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def script(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        await connection.chunk(b'data: {"jsonrpc":"2.0","method":"n"}\n\n')
        await connection.peer_left()

    upstream.script = script
    with anyio.fail_after(5):
        headers = {"MCP-Protocol-Version": "2026-07-28"}
        async with proxy.stream("POST", request("subscriptions/listen", 5), **headers) as response:
            chunks = response.aiter_raw()
            await anext(chunks)
            proxy.service.drain()
            assert b'"complete"' in b"".join([chunk async for chunk in chunks])
    asked, notified, ended = await proxy.tape((await the_one(proxy)).id)
    assert (asked.stream, asked.position) == (notified.stream, 0) == (ended.stream, 0)
    assert (said(ended), ended.position) == (("server", "response", 5, None), 2)


async def test_a_body_that_cannot_be_read_along_passes(proxy: Proxied, upstream: ScriptedUpstream) -> None:
    async def script(received: Received, connection: Connection) -> None:
        headers = (("Content-Type", "application/json"), ("Content-Encoding", "br"))
        await connection.respond(b"\x0b\x02\x80{}\x03", *headers)

    upstream.script = script
    async with proxy.stream("POST", CALL, **{"MCP-Protocol-Version": "2026-07-28"}) as response:
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == b"\x0b\x02\x80{}\x03"
    assert [frame.direction for frame in await proxy.tape((await the_one(proxy)).id)] == ["client"]


async def test_without_a_tape_there_is_none(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, tape="off") as proxy:
        assert (await proxy.post(CALL, **MODERN)).status_code == 200
        assert await proxy.store.count_sessions() == 0


async def test_a_server_that_keeps_no_sessions_has_one_as_well(upstream: ScriptedUpstream) -> None:
    upstream.session = None
    async with proxied(upstream.url, session_ids="upstream") as proxy:
        assert (await proxy.call()).status_code == 200
        tape = await proxy.tape((await the_one(proxy)).id)
    assert [frame.envelope.kind for frame in tape] == ["request", "response"]


# -- whose it is --------------------------------------------------------------------------------------------


async def test_there_is_one_for_each_upstream_and_principal(upstream: ScriptedUpstream) -> None:
    async with proxied({"one": upstream.url, "two": upstream.url}) as proxy:
        for path in ("/one/mcp", "/two/mcp"):
            proxy.path = path
            await proxy.post(CALL, **MODERN)
            for token in ("Bearer a", "Bearer b", jwt("ada", 1), jwt("ada", 2)):
                await proxy.post(CALL, **MODERN, Authorization=token)
        sessions = await proxy.sessions(ambient=True)
        assert [each.upstream for each in sessions].count("one") == 4
        assert len({each.id for each in sessions}) == len(sessions) == 8
        assert sorted(each.principal.partition(":")[0] for each in sessions) == [
            *["", ""],
            *["jwt", "jwt"],
            *["key"] * 4,
        ]
        assert not any(secret in str(sessions) for secret in ("Bearer", "signature"))


async def test_who_only_claims_to_be_somebody_is_not_on_their_tape(
    proxy: Proxied, upstream: ScriptedUpstream
) -> None:
    async def strict(received: Received, connection: Connection) -> None:
        if received.header(b"authorization") == jwt("ada", 1).encode():
            await echo(received, connection)
        else:
            await connection.respond(status="401 Unauthorized")

    upstream.script = strict
    for token in (jwt("ada", 2), jwt("ada", 1), jwt("ada", 2), "Bearer made-up"):
        await proxy.post(CALL, **MODERN, Authorization=token)
    tape = await proxy.tape((await the_one(proxy)).id)
    assert [frame.direction for frame in tape] == ["client", "server"]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_no_client_can_use_it(proxy: Proxied, upstream: ScriptedUpstream, method: str) -> None:
    await proxy.post(CALL, **MODERN)
    proxy.session_id = (await the_one(proxy)).id
    message = CALL if method == "POST" else None
    async with proxy.stream(method, message, **{"Last-Event-ID": "s.abcdefgh-1"}) as response:
        assert response.status_code == 404
    assert len(upstream.received) == 1
    assert await proxy.store.get_session(proxy.session_id) is not None


async def test_no_upstream_can_give_it_to_a_client(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, session_ids="upstream") as proxy:
        upstream.session = f"~ambient.{0:032}"  # before there is one
        response = await proxy.post(request("initialize", 1, {"protocolVersion": "2025-11-25"}))
        assert response.status_code == 502
        assert response.json()["error"]["data"]["reason"] == "upstream_error"
        assert await proxy.store.count_sessions() == 0


async def test_replicas_record_under_the_same(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    stores = [SQLiteStore(tmp_path / "sessions.db") for _ in range(2)]
    async with proxied(upstream.url, stores[0]) as one, proxied(upstream.url, stores[1]) as two:
        for proxy in (one, two, one):
            await proxy.post(CALL, **MODERN, Authorization="Bearer a")
            await proxy.service.recorder.flush()
        assert len(await one.tape((await the_one(one)).id)) == 6


# -- the store ----------------------------------------------------------------------------------------------


class Trouble(MemoryStore):
    """A store that can be down, and a clock that can be set."""

    def __init__(self, limits: StoreLimits | None = None) -> None:
        self.now = 1000.0
        super().__init__(clock=lambda: self.now, limits=limits)
        self.down = False
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        if self.down:
            raise StoreUnavailable("down")
        self.asked.append(what)

    async def create_session(self, session: Session) -> Session:
        self._ask("create")
        return await super().create_session(session)

    async def touch_session(self, session_id: str, expires_at: float) -> bool:
        self._ask("touch")
        return await super().touch_session(session_id, expires_at)

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        self._ask("add")
        return await super().add_frames(frames, keep=keep)


async def test_a_store_that_is_down_stops_nobody(upstream: ScriptedUpstream) -> None:
    store = Trouble()
    async with proxied(upstream.url, store, record_window=1000) as proxy:
        store.down = True
        for _ in range(2):
            assert (await proxy.post(CALL, **MODERN)).status_code == 200
        await proxy.service.recorder.flush()
        assert proxy.service.recorder.waiting == 4
        store.down = False
        assert len(await proxy.tape((await the_one(proxy)).id)) == 4


async def test_a_store_that_is_full_stops_nobody(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    store = Trouble(StoreLimits(sessions=1))
    async with proxied(upstream.url, store, record_window=1000) as proxy:
        await proxy.begin()
        client, proxy.session_id = proxy.session_id, ""
        for token in ("Bearer a", "Bearer b", "Bearer a"):
            assert (await proxy.post(CALL, **MODERN, Authorization=token)).status_code == 200
            await proxy.service.recorder.flush()
        assert await proxy.sessions(ambient=True) == []
        errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "not recorded" in errors[0]
        assert proxy.service.counters.frames_dropped == 6
        assert store.asked.count("create") == 3  # the client's session, and one attempt for each principal
        await store.delete_session(client)
        store.now += 5
        await proxy.post(CALL, **MODERN, Authorization="Bearer a")
        assert len(await proxy.tape((await the_one(proxy)).id)) == 2


async def test_it_lives_as_long_as_something_passes(upstream: ScriptedUpstream) -> None:
    store = Trouble()
    async with proxied(upstream.url, store, record_window=1000, session_ttl=100) as proxy:
        for _ in range(30):
            await proxy.post(CALL, **MODERN)
            await proxy.service.recorder.flush()
            store.now += 5
        assert store.asked.count("create") == 1
        assert store.asked.count("touch") == 15  # each tenth of its life, no more
        assert len(await proxy.tape((await the_one(proxy)).id)) == 60
        store.now += 100
        assert await proxy.sessions(ambient=True) == []
        await proxy.post(CALL, **MODERN)
        session = await the_one(proxy)
        assert (session.created_at, session.expires_at) == (store.now, store.now + 100)


async def test_a_tape_that_is_deleted_begins_anew(upstream: ScriptedUpstream) -> None:
    store = Trouble()
    async with proxied(upstream.url, store, record_window=1000) as proxy:
        await proxy.post(CALL, **MODERN)
        await store.delete_session((await the_one(proxy)).id)
        for _ in range(2):
            await proxy.post(CALL, **MODERN)
            await proxy.service.recorder.flush()
        assert len(await proxy.tape((await the_one(proxy)).id)) == 2
        assert proxy.service.counters.frames_dropped == 2


async def test_where_it_is_to_be_durable_first_it_is(upstream: ScriptedUpstream) -> None:
    store = Trouble()
    kept: list[str] = []

    async def script(received: Received, connection: Connection) -> None:
        for session in (await store.list_sessions()).sessions:
            kept.extend(frame.direction for frame in await store.get_frames(session.id))
        await echo(received, connection)

    upstream.script = script
    async with proxied(upstream.url, store, record_window=0) as proxy:
        await proxy.post(CALL, **MODERN)
        assert kept == []  # the first of these credentials waits for the server's word
        await proxy.post(CALL, **MODERN)
        assert kept == ["client", "server", "client"]
        (session,) = (await store.list_sessions()).sessions
        assert is_ambient(session.id)
        assert len(await store.get_frames(session.id)) == 4
