"""The Python SDK's client and server in revision 2026-07-28: no session, no GET stream, no DELETE."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from mcp.client.subscriptions import ResourceUpdated

from shadowcat import create_app
from shadowcat_stores import MemoryStore
from tests.real._client import MODERN, Action, Asked, Wire, open_client, text_of
from tests.real._process import PythonServer
from tests.real.conftest import Connect
from tests.support.serving import serve

with_either_answer = pytest.mark.parametrize("server", ["sse", "json", "stateless"], indirect=True)


@with_either_answer
async def test_list_and_call_without_a_session(connect: Connect, server: PythonServer, wire: Wire) -> None:
    async with connect(MODERN) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        said = await client.call_tool("echo", {"text": "grüß dich 🐈\r\n\x00"})
        failed = await client.call_tool("fail", {"reason": "no luck"})

    assert {"echo", "count", "greet"} <= tools
    assert said.structured_content == {"result": "grüß dich 🐈\r\n\x00"}
    assert failed.is_error
    assert await server.requests_of(wire.client_id) == ["POST", "POST", "POST"]
    assert wire.session_ids == set()


async def test_a_client_that_asks_first_finds_the_newest_revision(connect: Connect, wire: Wire) -> None:
    async with connect("auto") as client:
        agreed, about = client.protocol_version, client.server_info
        said = await client.call_tool("echo", {"text": "found"})

    assert about is not None
    assert (agreed, about.name) == (MODERN, "shadowcat-sample")
    assert text_of(said) == "found"
    assert wire.session_ids == set()


@with_either_answer
async def test_a_result_much_larger_than_any_buffer_arrives_whole(connect: Connect) -> None:
    async with connect(MODERN) as client:
        said = await client.call_tool("repeat", {"text": "größer🐈", "times": 30_000})

    assert text_of(said) == "größer🐈" * 30_000


async def test_progress_arrives_while_the_tool_is_at_work(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        await server.give(f"{wire.client_id}:{progress:g}")  # only now does the tool go on

    async with connect(MODERN) as client:
        await client.list_tools()
        done = await client.call_tool(
            "count", {"to": 5, "gate": wire.client_id}, progress_callback=on_progress
        )

    assert seen == [1, 2, 3, 4, 5]
    assert text_of(done) == "counted to 5"
    assert wire.answered[-1] == ("POST", 200, "text/event-stream")


@with_either_answer
@pytest.mark.parametrize(("action", "reply"), [("accept", "Hello, Ada!"), ("decline", "No name: decline")])
async def test_elicitation_is_answered_by_calling_again(
    connect: Connect, action: Action, reply: str, server: PythonServer, wire: Wire, asked: Asked
) -> None:
    async with connect(MODERN, elicitation_callback=asked.elicit(action)) as client:
        await client.list_tools()
        greeted = await client.call_tool("greet", {})

    assert asked.questions == ["What is your name?"]
    assert text_of(greeted) == reply
    assert await server.requests_of(wire.client_id) == ["POST", "POST", "POST"]


@with_either_answer
async def test_sampling_is_answered_by_calling_again(connect: Connect, asked: Asked) -> None:
    async with connect(MODERN, sampling_callback=asked.sample) as client:
        pondered = await client.call_tool("ponder", {"question": "Six times seven?"})

    assert asked.questions == ["Six times seven?"]
    assert text_of(pondered) == "Six times seven? Forty-two."


@with_either_answer
async def test_resource_updates_arrive_on_a_listen_stream(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    uri = f"note://{wire.client_id}"
    async with connect(MODERN) as client, client.listen(resource_subscriptions=[uri]) as updates:
        for text in ("first", "second"):
            await server.change_note(wire.client_id, text)
            assert await anext(updates) == ResourceUpdated(uri=uri)
            read = await client.read_resource(uri)
            assert read.contents[0].model_dump()["text"] == text


async def test_a_subscription_ends_well_when_the_proxy_stops(server: PythonServer, wire: Wire) -> None:
    """Not as one that was lost: the SDK's client would raise."""
    app = create_app(MemoryStore(), upstream=server.url)
    uri = f"note://{wire.client_id}"
    async with (
        serve(app) as base,
        open_client(base + "/mcp", MODERN, wire) as client,
        client.listen(resource_subscriptions=[uri]) as updates,
    ):
        await server.change_note(wire.client_id, "first")
        assert await anext(updates) == ResourceUpdated(uri=uri)
        app.state.shadowcat.drain()
        assert [update async for update in updates] == []


# Not with JSON answers: there the SDK's server does not watch for its client to leave.
@pytest.mark.parametrize("server", ["sse", "stateless"], indirect=True)
async def test_a_client_that_leaves_a_call_cancels_it_in_the_server(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    key = wire.client_id
    async with connect(MODERN) as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(client.call_tool, "block", {"key": key})
            await server.wait_for(f"{key}:started")
            calls.cancel_scope.cancel()  # no response headers yet: the server sends them with its first event
        await server.wait_for(f"{key}:cancelled")
        said = await client.call_tool("echo", {"text": "still here"})

    assert text_of(said) == "still here"


async def test_a_client_that_leaves_after_progress_cancels_the_call_in_the_server(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    under_way = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        under_way.set()

    key = wire.client_id
    async with connect(MODERN) as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(partial(client.call_tool, "block", {"key": key}, progress_callback=on_progress))
            await under_way.wait()
            calls.cancel_scope.cancel()
        await server.wait_for(f"{key}:cancelled")
        said = await client.call_tool("echo", {"text": "still here"})

    assert text_of(said) == "still here"
    assert ("POST", 200, "text/event-stream") in wire.answered
