"""The Python SDK's client on npm's everything server (TypeScript SDK: sessions, SSE with event ids)."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from tests.real._client import Action, Asked, Wire, text_of
from tests.real._process import ServerProcess
from tests.real.conftest import Connect, Route
from tests.support.plain import plain_http

REVISIONS = ["2025-03-26", "2025-06-18", "2025-11-25"]
NEWEST = REVISIONS[-1]

pytestmark = pytest.mark.parametrize("server", ["node"], indirect=True)

LONG = {"duration": 100, "steps": 1000}
"""An operation with ten steps a second, for 100 s: who sees steps of it soon does not get them at the end."""


@pytest.mark.parametrize("revision", REVISIONS)
async def test_initialize_list_and_call(connect: Connect, revision: str, wire: Wire) -> None:
    async with connect(revision) as client:
        about, agreed = client.server_info, client.protocol_version
        tools = {tool.name for tool in (await client.list_tools()).tools}
        said = await client.call_tool("echo", {"message": "grüß dich 🐈"})
        summed = await client.call_tool("get-sum", {"a": 2, "b": 40})

    assert about is not None
    assert (about.name, agreed) == ("mcp-servers/everything", revision)
    assert {"echo", "get-sum", "trigger-long-running-operation"} <= tools
    assert text_of(said) == "Echo: grüß dich 🐈"
    assert text_of(summed) == "The sum of 2 and 40 is 42."
    assert wire.media_types("POST") == {"text/event-stream"}


async def test_a_client_that_asks_first_falls_back_to_a_session(connect: Connect, wire: Wire) -> None:
    async with connect("auto") as client:
        agreed = client.protocol_version
        said = await client.call_tool("echo", {"message": "found"})

    # The server knows no `server/discover`. That refusal is the answer the client goes by.
    assert wire.answered[0] == ("POST", 400, "application/json")
    assert agreed == NEWEST
    assert text_of(said) == "Echo: found"


async def test_an_image_and_a_resource_arrive_whole(connect: Connect) -> None:
    async with connect(NEWEST) as client:
        image = await client.call_tool("get-tiny-image", {})
        resources = (await client.list_resources()).resources
        read = await client.read_resource(str(resources[0].uri))
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}

    assert [part.type for part in image.content] == ["text", "image", "text"]
    assert image.content[1].model_dump()["data"].startswith("iVBORw0KGgo")
    assert read.contents[0].model_dump()["text"].startswith("# ")
    assert "simple-prompt" in prompts


@pytest.mark.parametrize("revision", REVISIONS)
async def test_each_step_of_progress_arrives_and_then_the_result(connect: Connect, revision: str) -> None:
    seen: list[tuple[float, float | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    async with connect(revision) as client:
        operation = {"duration": 0.1, "steps": 4}
        done = await client.call_tool(
            "trigger-long-running-operation", operation, progress_callback=on_progress
        )

    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "completed" in text_of(done)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_progress_arrives_in_time_and_a_cancelled_call_leaves_the_session_usable(
    connect: Connect, revision: str
) -> None:
    seen: list[float] = []
    enough = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        if progress == 3:
            enough.set()

    async with connect(revision) as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(
                partial(
                    client.call_tool, "trigger-long-running-operation", LONG, progress_callback=on_progress
                )
            )
            await enough.wait()
            calls.cancel_scope.cancel()
        said = await client.call_tool("echo", {"message": "still here"})

    assert seen[:3] == [1, 2, 3]
    assert text_of(said) == "Echo: still here"


@pytest.mark.parametrize(("action", "outcome"), [("accept", "- Name: Ada"), ("decline", "User declined")])
async def test_elicitation_goes_there_and_back_within_a_call(
    connect: Connect, action: Action, outcome: str, asked: Asked
) -> None:
    async with connect(NEWEST, elicitation_callback=asked.elicit(action)) as client:
        done = await client.call_tool("trigger-elicitation-request", {})

    assert asked.questions == ["Please provide inputs for the following fields:"]
    assert outcome in text_of(done)


async def test_sampling_goes_there_and_back_within_a_call(connect: Connect, asked: Asked) -> None:
    async with connect(NEWEST, sampling_callback=asked.sample) as client:
        done = await client.call_tool("trigger-sampling-request", {"prompt": "Six times seven?"})

    assert asked.questions == ["Resource trigger-sampling-request context: Six times seven?"]
    assert "Forty-two." in text_of(done)


async def test_the_server_asks_on_the_get_stream_while_a_call_waits(connect: Connect, asked: Asked) -> None:
    async with connect(NEWEST, list_roots_callback=asked.roots) as client:
        done = await client.call_tool("get-roots-list", {})

    assert set(asked.questions) == {"roots"}
    assert "file:///srv/ada" in text_of(done)


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed:mcp.MCPDeprecationWarning")
@pytest.mark.parametrize("revision", REVISIONS)
async def test_resource_updates_arrive_on_the_get_stream(
    connect: Connect, revision: str, asked: Asked
) -> None:
    async with connect(revision, message_handler=asked.notified) as client:
        uri = str((await client.list_resources()).resources[0].uri)
        await client.subscribe_resource(uri)
        await client.call_tool("toggle-subscriber-updates", {})
        assert await asked.updates.get() == uri


async def test_a_terminated_session_is_refused(
    connect: Connect, route: Route, server: ServerProcess, wire: Wire
) -> None:
    async with connect(NEWEST) as client:
        await client.call_tool("echo", {"message": "before"})  # the session is alive

    assert wire.answered[-1][:2] == ("DELETE", 200)
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": NEWEST,
        "mcp-session-id": wire.session_id,
    }
    url = await route.url_for(server.url)
    async with plain_http(headers=headers) as http:
        answer = await http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})

    # 404 is what the specification asks for. This server says 400; the proxy ended the session itself.
    assert answer.status_code == {"direct": 400, "proxied": 404}[route.name]
    assert "error" in answer.json()
