"""The proxy is told to stop in the middle of its work: everything it has passed on is in the tapes."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress

import anyio
import httpx2
import pytest

from shadowcat_stores import store_from_url
from tests.durability._load import Conversation, Moments, NumberedServer, answers
from tests.support.plain import plain_http
from tests.support.proxying import ACCEPT, request
from tests.support.redis import RedisServer
from tests.support.serve_command import DEADLINE, serve_command
from tests.support.upstream import Connection, Received, ScriptedUpstream

_NEVER = 3600.0
"""A window that does not end before the test: whatever is stored then, the stop has stored."""


async def _talk(conversation: Conversation, url: str, choices: random.Random) -> None:
    with suppress(httpx2.TransportError):  # it takes no more connections
        if not conversation.session_id:
            await conversation.begin(url)
        while True:
            await conversation.call(url, choices.choice((0, 0, 1, 4)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("window", [0.05, _NEVER])
async def test_a_stop_under_load_loses_nothing(
    upstream: ScriptedUpstream, store_url: str, window: float, number: signal.Signals
) -> None:
    seed = time.time_ns() % 10**9
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    choices = random.Random(seed)
    server = NumberedServer(upstream)
    settings = {"record_window": window, "tape": "full"}
    with anyio.fail_after(DEADLINE):
        async with (
            plain_http() as http,
            serve_command(upstream.url, store_url, **settings) as served,
        ):
            server.moments = Moments(choices.randint(50, 500), lambda: served.command.send(number))
            conversations = [Conversation(http, moments=server.moments) for _ in range(6)]
            async with anyio.create_task_group() as tasks:
                for each in conversations:
                    tasks.start_soon(_talk, each, served.url, choices)
            assert await served.command.ends() == 0
            assert "lost" not in served.command.output
            assert "Traceback" not in served.command.output
        async with store_from_url(store_url) as store:
            for each in conversations:
                # What was under way got its answer before the end, too.
                assert each.check(await store.get_frames(each.session_id)) == []
                assert each.known == len(each.items)
    assert set(server.executed.values()) == {1}


async def test_a_stop_while_the_store_hangs_ends_and_says_what_is_lost(
    upstream: ScriptedUpstream, redis: RedisServer
) -> None:
    *progress, _ = answers(1, 3)

    async def answer_without_an_end(received: Received, connection: Connection) -> None:
        await connection.start_stream()
        for each in progress:
            await connection.chunk(b"data: " + each + b"\n\n")
        await connection.peer_left()

    upstream.script = answer_without_an_end
    settings = {"record_window": _NEVER, "session_cache": _NEVER, "shutdown_grace": 0}
    url = f"{redis.url}?timeout=0.5"
    with anyio.fail_after(DEADLINE):
        async with plain_http() as http, serve_command(upstream.url, url, **settings) as served:
            conversation = Conversation(http)
            await conversation.begin(served.url)
            headers = {"Accept": ACCEPT, "Mcp-Session-Id": conversation.session_id}
            message = request("tools/call", 1)
            async with http.stream("POST", served.url, json=message, headers=headers) as response:
                lines = response.aiter_lines()
                data = (line[6:].encode() async for line in lines if line.startswith("data: "))
                assert [await anext(data) for _ in progress] == progress
                redis.pause()
                served.command.send(signal.SIGINT)
                (end,) = [each async for each in data]
            assert await served.command.ends() == 0
            redis.resume()
        assert json.loads(end)["error"]["data"]["reason"] == "ambiguous_delivery"
        # The request, the progress and how it ended; what the handshake's answer waited for had been stored.
        assert "stopped while the store takes no frames: 5 are lost" in served.command.output
