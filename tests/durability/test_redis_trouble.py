"""Trouble with Redis, seen through a proxy that is not restarted for it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from shadowcat_stores import store_from_url
from tests.durability._load import Conversation, NumberedServer, answers
from tests.durability._trouble import SLACK, STORE_TIMEOUT, Patient
from tests.support.plain import plain_http
from tests.support.proxying import ACCEPT, request
from tests.support.redis import RedisServer
from tests.support.serve_command import DEADLINE, serve_command
from tests.support.upstream import Connection, Received, ScriptedUpstream


@dataclass
class Trouble:
    """How it begins and ends, and what is left meanwhile."""

    begin: Callable[[RedisServer], object]
    end: Callable[[RedisServer], object]
    reason: str
    reads: bool = False
    """Whether sessions can still be read."""
    keeps: bool = True
    """Whether the sessions are there afterwards."""


def _set(name: str, value: int) -> Callable[[RedisServer], object]:
    return lambda server: server.client().config_set(name, value)


def _replica_of(*primary: str) -> Callable[[RedisServer], object]:
    return lambda server: server.client().replicaof(*primary)


TROUBLES = {
    "gone": Trouble(RedisServer.kill, RedisServer.start, "it cannot be reached", keeps=False),
    "hanging": Trouble(RedisServer.pause, RedisServer.resume, "did not answer within"),
    "read-only": Trouble(
        _replica_of("127.0.0.1", "1"), _replica_of("NO", "ONE"), "read-only replica", reads=True
    ),
    "without its replicas": Trouble(
        _set("min-replicas-to-write", 1), _set("min-replicas-to-write", 0), "too few replicas", reads=True
    ),
    "out of memory": Trouble(_set("maxmemory", 1), _set("maxmemory", 0), "out of memory", reads=True),
}


@asynccontextmanager
async def patient(upstream: ScriptedUpstream, redis: RedisServer, **settings: Any) -> AsyncIterator[Patient]:
    server = NumberedServer(upstream)
    known = {"store_timeout": STORE_TIMEOUT, "session_cache": 0, **settings}
    with anyio.fail_after(DEADLINE):
        async with plain_http() as http, serve_command(upstream.url, redis.url, **known) as served:
            conversation = Conversation(http)
            await conversation.begin(served.url)
            await conversation.call(served.url, 2)
            yield Patient(served, http, server, conversation, redis.url)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_it_is_said_and_heals_by_itself(
    upstream: ScriptedUpstream, redis: RedisServer, trouble: Trouble
) -> None:
    async with patient(upstream, redis) as ill:
        await ill.heals()  # so that what is recorded so far is stored
        trouble.begin(redis)
        for _ in range(2):
            await ill.refuses_new_sessions()
            if trouble.reads:
                await ill.conversation.call(ill.served.url, 2)
            else:
                await ill.refuses_the_session()
            await ill.goes_on_without_a_session()
        await ill.is_not_ready(trouble.reason)
        trouble.end(redis)
        healed_in = await ill.heals()
        assert healed_in < 2.0
        if trouble.keeps:
            await ill.has_lost_nothing()
        else:
            headers = {"Mcp-Session-Id": ill.conversation.session_id}
            message = request("tools/call", "gone", {"events": 0})
            gone = await ill.http.post(ill.served.url, json=message, headers=headers)
            assert gone.status_code == 404
            assert gone.json()["error"]["data"] == {"reason": "session_unknown"}
            await ill.conversation.begin(ill.served.url)
            await ill.has_lost_nothing()
        assert "Traceback" not in ill.served.command.output


async def test_a_store_that_is_down_at_the_start_is_opened_when_it_is_back(
    upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    redis.kill()
    server = NumberedServer(upstream)
    with anyio.fail_after(DEADLINE):
        async with (
            plain_http() as http,
            serve_command(upstream.url, redis.url, store_timeout=STORE_TIMEOUT) as served,
        ):
            ill = Patient(served, http, server, Conversation(http, "from-before"), redis.url)
            await served.command.says("the session store is down, and is asked again until it is back: ")
            for _ in range(2):
                await ill.refuses_new_sessions()
                await ill.refuses_the_session()
                await ill.goes_on_without_a_session()
            await ill.is_not_ready("it cannot be reached|the store is not open")
            redis.start()
            assert await ill.heals() < 2.0
            await ill.conversation.begin(served.url)
            await ill.has_lost_nothing()
            assert "Traceback" not in served.command.output


async def test_a_store_that_stays_down_holds_up_no_end(
    upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    redis.kill()
    with anyio.fail_after(DEADLINE):
        async with serve_command(upstream.url, redis.url, store_timeout=STORE_TIMEOUT) as served:
            await served.command.says("the session store is down")
            served.command.send(signal.SIGINT)
            assert await served.command.ends() == 0
            assert "Traceback" not in served.command.output


async def test_lost_connections_cost_no_answer_twice_and_no_frame(
    upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    async with patient(upstream, redis, tape="full") as ill:
        conversations = [ill.conversation, *(Conversation(ill.http) for _ in range(3))]
        for each in conversations[1:]:
            await each.begin(ill.served.url)
        refused = 0
        with redis.client() as admin:

            async def talk(conversation: Conversation) -> None:
                nonlocal refused
                for number in range(20):
                    before = len(conversation.items)
                    if number % 4 == 0:
                        admin.execute_command("CLIENT", "KILL", "TYPE", "normal")
                    try:
                        await conversation.call(ill.served.url, number % 3)
                    except AssertionError as error:
                        (_, status), *_ = error.args
                        assert status == 503
                        refused += 1
                        del conversation.items[before:]

            async with anyio.create_task_group() as tasks:
                for each in conversations:
                    tasks.start_soon(talk, each)
        await ill.heals()
        async with store_from_url(redis.url) as store:
            for each in conversations:
                assert each.check(await store.get_frames(each.session_id)) == []
                assert each.known == len(each.items)
        assert set(ill.server.executed.values()) == {1}
        assert refused < 20


# -- recording never stops the traffic ------------------------------------------------------------------


class OneByOne:
    """Sends the next event of its stream when it is told to."""

    def __init__(self) -> None:
        self.wanted: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, received: Received, connection: Connection) -> None:
        await connection.start_stream()
        while message := await self.wanted.get():
            await connection.chunk(b"data: " + message + b"\n\n")
        await connection.end_stream()


@pytest.mark.parametrize("window", [0.05, 0])
@pytest.mark.parametrize("name", ["hanging", "out of memory"])
async def test_a_stream_goes_on_and_what_the_tape_misses_is_visible(
    upstream: ScriptedUpstream, redis: RedisServer, name: str, window: float
) -> None:
    trouble = TROUBLES[name]
    events = answers(0, 40)
    async with patient(upstream, redis, record_window=window, record_queue_bytes=4000) as ill:
        await ill.heals()
        upstream.script = script = OneByOne()
        headers = {
            "Accept": ACCEPT,
            "Content-Type": "application/json",
            "Mcp-Session-Id": ill.conversation.session_id,
        }
        message = request("tools/call", 0, {"events": 40})
        async with ill.http.stream("POST", ill.served.url, json=message, headers=headers) as response:
            chunks = response.aiter_raw()
            delays: list[float] = []
            for place, event in enumerate(events):
                if place == 3:
                    trouble.begin(redis)
                elif place == 20:
                    await ill.served.command.says("the store does not take frames; they wait: ")
                script.wanted.put_nowait(event)
                begun = time.monotonic()
                assert (await anext(chunks)).endswith(b"data: " + event + b"\n\n")
                delays.append(time.monotonic() - begun)
            script.wanted.put_nowait(b"")
            assert [each async for each in chunks] == []
        *others, slowest = sorted(delays)
        assert max(others) < SLACK
        # What must be durable first is waited for once; then it is known that the store takes nothing.
        assert slowest < SLACK if window else slowest < STORE_TIMEOUT + SLACK
        await ill.served.command.says("dropping frames from the tapes; the traffic goes on")
        dropped = await ill.served.metric(ill.http, "frames_dropped_total")
        assert 0 < dropped < len(events)
        trouble.end(redis)
        await ill.heals()
        await ill.served.command.says("the store takes frames again")
        async with store_from_url(redis.url) as store:
            tape = await store.get_frames(ill.conversation.session_id)
        recorded = tape[len(ill.conversation.items) + 1 :]
        (place,) = (place for place, frame in enumerate(recorded) if frame.envelope.kind == "gap")
        assert json.loads(recorded[place].envelope.raw) == {"dropped": dropped}
        raws = [frame.envelope.raw for frame in recorded]
        assert raws[:place] == events[:place]
        assert raws[place + 1 :] == events[place + dropped :]
