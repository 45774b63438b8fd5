"""The Python SDK's client and server, in the revisions with sessions."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from mcp import MCPError

from tests.real._client import Action, Asked, Wire, text_of
from tests.real._process import PythonServer
from tests.real.conftest import Connect, Route
from tests.support.plain import plain_http

REVISIONS = ["2025-03-26", "2025-06-18", "2025-11-25"]
NEWEST = REVISIONS[-1]

with_either_answer = pytest.mark.parametrize("server", ["sse", "json"], indirect=True)


@pytest.mark.parametrize("revision", REVISIONS)
@with_either_answer
async def test_initialize_list_and_call(
    connect: Connect, revision: str, server: PythonServer, wire: Wire
) -> None:
    async with connect(revision) as client:
        about = client.server_info
        agreed = client.protocol_version
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        said = await client.call_tool("echo", {"text": "grüß dich 🐈\r\n\x00"})
        failed = await client.call_tool("fail", {"reason": "no luck"})

    assert about is not None
    assert (about.name, about.version, agreed) == ("shadowcat-sample", "1.0", revision)
    assert {"echo", "count", "greet"} <= set(tools)
    assert tools["echo"].input_schema["required"] == ["text"]
    assert said.structured_content == {"result": "grüß dich 🐈\r\n\x00"}
    assert failed.is_error
    assert "no luck" in text_of(failed)
    assert wire.media_types("POST") == {server.media_type}


@with_either_answer
async def test_every_request_reaches_the_server_once(
    connect: Connect, server: PythonServer, wire: Wire
) -> None:
    async with connect(NEWEST) as client:
        await client.list_tools()
        await client.call_tool("echo", {"text": "once"})
        await client.read_resource("sample://about")

    seen = await server.requests_of(wire.client_id)
    # initialize, initialized, the three above; the standalone stream; the end
    assert sorted(seen) == ["DELETE", "GET", "POST", "POST", "POST", "POST", "POST"]
    assert seen[-1] == "DELETE"


@with_either_answer
async def test_an_unknown_tool_and_an_unknown_resource_are_the_servers_errors(connect: Connect) -> None:
    async with connect(NEWEST) as client:
        unknown = await client.call_tool("no-such-tool", {})
        with pytest.raises(MCPError) as error:
            await client.read_resource("sample://no-such-resource")

    assert unknown.is_error
    assert "no-such-tool" in text_of(unknown)
    assert "no-such-resource" in error.value.message


@with_either_answer
async def test_a_result_much_larger_than_any_buffer_arrives_whole(connect: Connect) -> None:
    async with connect(NEWEST) as client:
        said = await client.call_tool("repeat", {"text": "größer🐈", "times": 30_000})

    assert text_of(said) == "größer🐈" * 30_000


@pytest.mark.parametrize("revision", REVISIONS)
async def test_progress_arrives_while_the_tool_is_at_work(
    connect: Connect, revision: str, server: PythonServer, wire: Wire
) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))
        await server.give(f"{wire.client_id}:{progress:g}")  # only now does the tool go on

    async with connect(revision) as client:
        done = await client.call_tool(
            "count", {"to": 5, "gate": wire.client_id}, progress_callback=on_progress
        )

    assert seen == [(step, 5, f"step {step} of 5") for step in range(1, 6)]
    assert text_of(done) == "counted to 5"


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize(("action", "reply"), [("accept", "Hello, Ada!"), ("decline", "No name: decline")])
async def test_elicitation_goes_there_and_back_within_a_call(
    connect: Connect, revision: str, action: Action, reply: str, asked: Asked
) -> None:
    async with connect(revision, elicitation_callback=asked.elicit(action)) as client:
        greeted = await client.call_tool("greet", {})

    assert asked.questions == ["What is your name?"]
    assert text_of(greeted) == reply


@pytest.mark.parametrize("revision", REVISIONS)
async def test_sampling_goes_there_and_back_within_a_call(
    connect: Connect, revision: str, asked: Asked
) -> None:
    async with connect(revision, sampling_callback=asked.sample) as client:
        pondered = await client.call_tool("ponder", {"question": "Six times seven?"})

    assert asked.questions == ["Six times seven?"]
    assert text_of(pondered) == "Six times seven? Forty-two."


@with_either_answer
async def test_the_server_asks_on_the_get_stream_while_a_call_waits(connect: Connect, asked: Asked) -> None:
    async with connect(NEWEST, list_roots_callback=asked.roots) as client:
        found = await client.call_tool("roots", {})

    assert asked.questions == ["roots"]
    assert found.structured_content == {"result": ["file:///srv/ada"]}


@pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed:mcp.MCPDeprecationWarning")
@pytest.mark.parametrize("revision", REVISIONS)
@with_either_answer
async def test_resource_updates_arrive_on_the_get_stream(
    connect: Connect, revision: str, server: PythonServer, wire: Wire, asked: Asked
) -> None:
    name = wire.client_id
    async with connect(revision, message_handler=asked.notified) as client:
        await client.subscribe_resource(f"note://{name}")
        # Nobody's request is open: only the GET stream can bring these.
        for text in ("first", "second"):
            await server.change_note(name, text)
            assert await asked.updates.get() == f"note://{name}"
        read = await client.read_resource(f"note://{name}")
        await client.unsubscribe_resource(f"note://{name}")

    assert read.contents[0].model_dump()["text"] == "second"
    assert wire.media_types("GET") == {"text/event-stream"}


@pytest.mark.parametrize("revision", REVISIONS)
@with_either_answer
async def test_a_cancelled_call_is_cancelled_in_the_server_and_the_session_goes_on(
    connect: Connect, revision: str, server: PythonServer, wire: Wire
) -> None:
    key = wire.client_id
    async with connect(revision) as client:
        async with anyio.create_task_group() as calls:
            calls.start_soon(client.call_tool, "block", {"key": key})
            await server.wait_for(f"{key}:started")
            calls.cancel_scope.cancel()
        await server.wait_for(f"{key}:cancelled")
        said = await client.call_tool("echo", {"text": "still here"})

    assert text_of(said) == "still here"


@with_either_answer
async def test_a_terminated_session_is_refused_with_404(
    connect: Connect, route: Route, server: PythonServer, wire: Wire
) -> None:
    async with connect(NEWEST) as client:
        await client.call_tool("echo", {"text": "before"})  # the session is alive

    assert wire.answered[-1][:2] == ("DELETE", 200)
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": NEWEST,
        "mcp-session-id": wire.session_id,
    }
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    url = await route.url_for(server.url)
    async with plain_http(headers=headers) as http:
        answers = [await http.post(url, json=ping), await http.get(url), await http.delete(url)]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert "error" in answers[0].json()


async def test_two_sessions_with_the_same_request_ids_are_kept_apart(
    connect: Connect, server: PythonServer
) -> None:
    wires = [Wire(), Wire()]
    said: dict[str, list[str]] = {}

    async def on_progress(wire: Wire, progress: float, total: float | None, message: str | None) -> None:
        said[wire.client_id].append(f"{progress:g}")
        await server.give(f"{wire.client_id}:{progress:g}")

    async def converse(wire: Wire) -> None:
        said[wire.client_id] = []
        async with connect(NEWEST, wire) as client:
            for turn in range(10):
                echoed = await client.call_tool("echo", {"text": f"{wire.client_id} {turn}"})
                said[wire.client_id].append(text_of(echoed))
            await client.call_tool(
                "count", {"to": 3, "gate": wire.client_id}, progress_callback=partial(on_progress, wire)
            )

    async with anyio.create_task_group() as clients:
        for wire in wires:
            clients.start_soon(converse, wire)

    assert wires[0].session_id != wires[1].session_id
    for wire in wires:
        assert said[wire.client_id] == [f"{wire.client_id} {turn}" for turn in range(10)] + ["1", "2", "3"]


async def test_many_calls_at_once_on_one_session_get_their_own_answers(connect: Connect) -> None:
    said: dict[int, str] = {}

    async with connect(NEWEST) as client:
        await client.list_tools()

        async def call(number: int) -> None:
            said[number] = text_of(await client.call_tool("echo", {"text": f"call {number}"}))

        async with anyio.create_task_group() as calls:
            for number in range(30):
                calls.start_soon(call, number)

    assert said == {number: f"call {number}" for number in range(30)}


@pytest.mark.parametrize("server", ["stateless"], indirect=True)
@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_server_without_sessions_serves_the_same_client(
    connect: Connect, revision: str, server: PythonServer, wire: Wire
) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        await server.give(f"{wire.client_id}:{progress:g}")

    async with connect(revision) as client:
        tools = await client.list_tools()
        done = await client.call_tool(
            "count", {"to": 3, "gate": wire.client_id}, progress_callback=on_progress
        )

    assert "count" in {tool.name for tool in tools.tools}
    assert seen == [1, 2, 3]
    assert text_of(done) == "counted to 3"
