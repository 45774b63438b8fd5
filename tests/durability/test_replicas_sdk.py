"""The Python SDK's client and server with two proxies in between: every request may go through either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx2
import pytest

from shadowcat_stores import GET_STREAM, SessionStore, store_from_url
from tests.real._client import Asked, Wire, open_client, text_of
from tests.real._process import PythonServer
from tests.support.plain import plain_http
from tests.support.serve_command import DEADLINE, serve_command
from tests.support.splitter import Splitter, splitter


@dataclass
class OneConnectionEach(Wire):
    """A wire on which each request has a connection of its own, and so goes to the next proxy."""

    def http(self) -> httpx2.AsyncClient:
        http = plain_http(limits=httpx2.Limits(max_keepalive_connections=0))
        http.headers["x-test-client"] = self.client_id
        http.event_hooks = {"request": [self._on_request], "response": [self._on_response]}
        return http


@pytest.fixture(scope="module", params=[(), ("--json",)], ids=["sse", "json"])
def server(request: pytest.FixtureRequest) -> Iterator[PythonServer]:
    with PythonServer("the server behind two proxies", *request.param) as server:
        yield server


@asynccontextmanager
async def two_proxies(upstream: str, store_url: str) -> AsyncIterator[tuple[Splitter, SessionStore]]:
    with anyio.fail_after(DEADLINE):
        async with (
            serve_command(upstream, store_url, session_cache=0, record_window=0) as one,
            serve_command(upstream, store_url, session_cache=0, record_window=0) as other,
            splitter(one.base, other.base) as split,
            store_from_url(store_url) as store,
        ):
            yield split, store


async def test_a_whole_conversation(server: PythonServer, store_url: str) -> None:
    wire, asked = OneConnectionEach(), Asked()
    async with two_proxies(server.url, store_url) as (split, store):
        async with open_client(
            split.base + "/mcp",
            "2025-11-25",
            wire,
            elicitation_callback=asked.elicit("accept"),
            sampling_callback=asked.sample,
            list_roots_callback=asked.roots,
        ) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            for number in range(10):
                assert text_of(await client.call_tool("echo", {"text": f"{number}"})) == f"{number}"
            if server.media_type == "text/event-stream":  # with JSON a server can ask nothing within a call
                assert text_of(await client.call_tool("greet", {})) == "Hello, Ada!"
                assert "Forty-two." in text_of(await client.call_tool("ponder", {"question": "?"}))
            tape = await store.get_frames(wire.session_id)
        assert "echo" in tools
        assert all(status < 300 for _, status, _ in wire.answered)
        first, second = split.taken.values()
        assert abs(first - second) <= 1
        assert first + second == len(wire.sent)

        seen = await server.requests_of(wire.client_id)
        assert sorted(seen) == sorted(wire.sent)
        assert [frame.seq for frame in tape] == list(range(1, len(tape) + 1))
        questions = [frame for frame in tape if frame.envelope.kind == "request"]
        for question in questions:
            (answer,) = (
                frame
                for frame in tape
                if frame.envelope.kind in ("response", "error")
                and frame.direction != question.direction
                and frame.envelope.id == question.envelope.id
            )
            assert answer.seq > question.seq
        streams = {frame.stream for frame in tape} - {None, GET_STREAM}
        assert len(streams) == sum(question.direction == "client" for question in questions)
        for stream in streams:
            question, *answers = [frame for frame in tape if frame.stream == stream]
            assert (question.direction, question.position) == ("client", 0)
            assert all(frame.direction == "server" for frame in answers)
            assert [frame.position for frame in answers] == list(range(1, len(answers) + 1))
            # A plain body is no stream that anybody could come back to.
            assert bool(answers) == (server.media_type == "text/event-stream")
        # The client's DELETE went through one of them.
        assert await store.get_session(wire.session_id) is None
