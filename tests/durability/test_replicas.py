"""Two proxies on one store and no stickiness: every request may land on either."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import pytest

from shadowcat_stores import SessionStore, store_from_url
from tests.durability._load import Conversation, NumberedServer
from tests.support.plain import plain_http
from tests.support.proxying import ACCEPT
from tests.support.serve_command import DEADLINE, Served, serve_command
from tests.support.splitter import Splitter, splitter
from tests.support.upstream import ScriptedUpstream

_SLACK = 0.5
"""Seconds that a request may take on a busy machine."""


@dataclass
class Replicas:
    """Two running proxies, what splits the requests between them, and the store they share."""

    one: Served
    other: Served
    split: Splitter
    store: SessionStore
    http: httpx2.AsyncClient
    """Takes a new connection for each request, so that they alternate."""

    @property
    def url(self) -> str:
        return self.split.base + "/mcp"

    async def stop(self) -> None:
        """Let both end, so that all they recorded is stored."""
        for each in (self.one, self.other):
            each.command.send(signal.SIGINT)
            assert await each.command.ends() == 0


@asynccontextmanager
async def replicas(upstream: str, store_url: str, **settings: Any) -> AsyncIterator[Replicas]:
    limits = httpx2.Limits(max_keepalive_connections=0)
    with anyio.fail_after(DEADLINE):
        async with (
            serve_command(upstream, store_url, **settings) as one,
            serve_command(upstream, store_url, **settings) as other,
            splitter(one.base, other.base) as split,
            store_from_url(store_url) as store,
            plain_http(limits=limits) as http,
        ):
            yield Replicas(one, other, split, store, http)


def _status(url: str, http: httpx2.AsyncClient, session_id: str) -> Any:
    headers = {"Accept": ACCEPT, "Content-Type": "application/json", "Mcp-Session-Id": session_id}
    message = {"jsonrpc": "2.0", "id": 0, "method": "ping", "params": {"events": 0}}
    return http.post(url, json=message, headers=headers)


async def _delete(url: str, http: httpx2.AsyncClient, session_id: str) -> None:
    response = await http.delete(url, headers={"Mcp-Session-Id": session_id})
    assert response.status_code == 200


# -- the whole conversation -----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0.05, 0])
async def test_all_calls_succeed_and_the_tapes_are_whole_and_in_order(
    upstream: ScriptedUpstream, store_url: str, window: float
) -> None:
    server = NumberedServer(upstream)
    async with replicas(upstream.url, store_url, tape="full", record_window=window) as both:
        conversations = [Conversation(both.http) for _ in range(4)]

        async def talk(conversation: Conversation) -> None:
            await conversation.begin(both.url)
            for number in range(20):
                await conversation.call(both.url, number % 3)

        async with anyio.create_task_group() as tasks:
            for each in conversations:
                tasks.start_soon(talk, each)
        assert set(both.split.taken.values()) == {4 * 21 / 2}
        await both.stop()
        for each in conversations:
            tape = await both.store.get_frames(each.session_id)
            assert each.check(tape) == []
            assert len(tape) == len(each.items)
    assert set(server.executed.values()) == {1}


# -- what one does, the other sees ----------------------------------------------------------------------


async def test_without_a_cache_a_deleted_session_is_gone_at_once(
    upstream: ScriptedUpstream, store_url: str
) -> None:
    NumberedServer(upstream)
    async with replicas(upstream.url, store_url, session_cache=0) as both:
        for here, there in ((both.one, both.other), (both.other, both.one)):
            conversation = Conversation(both.http)
            await conversation.begin(here.url)
            for each in (here, there):
                await conversation.call(each.url)
            await _delete(there.url, both.http, conversation.session_id)
            for each in (here, there):
                assert (await _status(each.url, both.http, conversation.session_id)).status_code == 404
            assert await both.store.get_session(conversation.session_id) is None


async def test_a_deleted_session_is_gone_within_the_stated_bound(
    upstream: ScriptedUpstream, store_url: str
) -> None:
    NumberedServer(upstream)
    async with replicas(upstream.url, store_url) as both:
        conversation = Conversation(both.http)
        await conversation.begin(both.one.url)
        await conversation.call(both.other.url)
        await _delete(both.one.url, both.http, conversation.session_id)
        deleted_at = time.monotonic()
        answer = await _status(both.one.url, both.http, conversation.session_id)
        assert answer.status_code == 404  # one's own doing is seen at once
        asked_at = deleted_at
        while (await _status(both.other.url, both.http, conversation.session_id)).status_code == 200:
            asked_at = time.monotonic()
        assert asked_at - deleted_at < 1.0 + _SLACK
        answer = await _status(both.other.url, both.http, conversation.session_id)
        assert answer.status_code == 404


async def test_each_lets_a_session_live_on_and_both_see_it_expire(
    upstream: ScriptedUpstream, store_url: str
) -> None:
    NumberedServer(upstream)
    async with replicas(upstream.url, store_url, session_ttl=1) as both:
        conversation = Conversation(both.http)
        await conversation.begin(both.one.url)
        session = await both.store.get_session(conversation.session_id)
        for each in (both.other, both.one, both.other):
            assert session is not None
            before = session.expires_at
            # A tenth of the time to live later the next call lets it live on.
            while session is not None and session.expires_at == before:
                await conversation.call(each.url)
                session = await both.store.get_session(conversation.session_id)
            assert session is not None
            assert session.expires_at > before
        while await both.store.get_session(conversation.session_id) is not None:
            await anyio.lowlevel.checkpoint()
        for each in (both.one, both.other):
            assert (await _status(each.url, both.http, conversation.session_id)).status_code == 404
        assert (await both.store.list_sessions(upstream="default")).sessions == []
