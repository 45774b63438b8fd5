"""What the proxy keeps of real conversations: the session and its tape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest

from shadowcat_stores import GET_STREAM, Frame, MemoryStore, Session
from tests.real._client import MODERN, Asked, Wire
from tests.real._process import PythonServer
from tests.real.conftest import Connect, ProxiedRoute, Route

NEWEST = "2025-11-25"


@pytest.fixture
async def route() -> AsyncIterator[Route]:
    """Only the way through the proxy."""
    async with ProxiedRoute.opened() as proxied:
        yield proxied


async def tape_up_to(last: str, store: MemoryStore, session_id: str) -> list[Frame]:
    """Return the tape up to the response to the last request of this method, as soon as it is recorded.

    Events without a message (a server's priming events) are left out.
    """
    tape: list[Frame] = []
    last_id = None
    async for frame in store.follow_frames(session_id):
        if frame.envelope.kind != "other":
            tape.append(frame)
        if frame.envelope.method == last:
            last_id = frame.envelope.id
        elif last_id is not None and frame.direction == "server" and frame.envelope.id == last_id:
            return tape
    raise AssertionError("the session ended")


def spoken(tape: list[Frame]) -> list[tuple[str, str, str | None]]:
    return [(frame.direction, frame.envelope.kind, frame.envelope.method) for frame in tape]


def said(frame: Frame) -> Any:
    """Return the message as the wire had it."""
    return msgspec.json.decode(frame.envelope.raw)


OPENING = [
    ("client", "request", "initialize"),
    ("server", "response", None),
    ("client", "notification", "notifications/initialized"),
    ("client", "request", "tools/list"),
    ("server", "response", None),
]


@pytest.mark.parametrize("server", ["sse", "json"], indirect=True)
async def test_the_session_is_kept_while_it_lives(
    connect: Connect, proxied_store: MemoryStore, wire: Wire
) -> None:
    async with connect(NEWEST):
        session = await proxied_store.get_session(wire.session_id)
        count = await proxied_store.count_sessions()

    assert count == 1
    assert session is not None
    assert session.protocol_version == NEWEST
    assert session.upstream_session_id
    assert session.upstream_session_id != wire.session_id
    assert await proxied_store.count_sessions() == 0
    assert await proxied_store.get_session(wire.session_id) is None


async def test_the_tape_has_a_conversation_of_streams_in_order(
    connect: Connect, server: PythonServer, proxied_store: MemoryStore, wire: Wire, asked: Asked
) -> None:
    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        await server.give(f"{wire.client_id}:{progress:g}")

    async with connect(
        NEWEST, elicitation_callback=asked.elicit("accept"), sampling_callback=asked.sample
    ) as client:
        await client.list_tools()
        gate = {"to": 2, "gate": wire.client_id}
        await client.call_tool("count", gate, progress_callback=on_progress)
        await client.call_tool("greet", {})
        await client.call_tool("ponder", {"question": "Why?"})
        await client.read_resource("sample://about")
        tape = await tape_up_to("resources/read", proxied_store, wire.session_id)

    assert spoken(tape) == [
        *OPENING,
        ("client", "request", "tools/call"),
        ("server", "notification", "notifications/progress"),
        ("server", "notification", "notifications/progress"),
        ("server", "response", None),
        ("client", "request", "tools/call"),
        ("server", "request", "elicitation/create"),
        ("client", "response", None),
        ("server", "response", None),
        ("client", "request", "tools/call"),
        ("server", "request", "sampling/createMessage"),
        ("client", "response", None),
        ("server", "response", None),
        ("client", "request", "resources/read"),
        ("server", "response", None),
    ]
    assert [frame.seq for frame in tape] == list(range(1, len(tape) + 1))
    assert said(tape[5])["params"]["arguments"] == gate
    assert [said(frame)["params"]["progress"] for frame in tape[6:8]] == [1, 2]
    assert said(tape[11])["result"] == {"action": "accept", "content": {"name": "Ada"}}
    # Each request is answered on a stream of its own, which is its own as well; all else is on none.
    streams = [frame.stream for frame in tape if frame.direction == "server"]
    assert len(set(streams)) == 6
    assert None not in streams
    requests = [
        frame.stream for frame in tape if frame.direction == "client" and frame.envelope.kind == "request"
    ]
    assert requests == list(dict.fromkeys(streams))


@pytest.mark.parametrize("server", ["json"], indirect=True)
@pytest.mark.filterwarnings("ignore:resources/subscribe is removed:mcp.MCPDeprecationWarning")
async def test_the_tape_has_plain_answers_and_what_came_on_the_get_stream(
    connect: Connect, server: PythonServer, proxied_store: MemoryStore, wire: Wire, asked: Asked
) -> None:
    uri = f"note://{wire.client_id}"
    async with connect(NEWEST, message_handler=asked.notified, list_roots_callback=asked.roots) as client:
        await client.list_tools()
        await client.call_tool("roots", {})
        await client.subscribe_resource(uri)
        await server.change_note(wire.client_id, "changed")
        await asked.updates.get()
        await client.read_resource(uri)
        tape = await tape_up_to("resources/read", proxied_store, wire.session_id)

    assert spoken(tape) == [
        *OPENING,
        ("client", "request", "tools/call"),
        ("server", "request", "roots/list"),
        ("client", "response", None),
        ("server", "response", None),
        ("client", "request", "resources/subscribe"),
        ("server", "response", None),
        ("server", "notification", "notifications/resources/updated"),
        ("client", "request", "resources/read"),
        ("server", "response", None),
    ]
    on_stream = {frame.envelope.method: frame.stream for frame in tape if frame.position}
    assert on_stream == {"roots/list": GET_STREAM, "notifications/resources/updated": GET_STREAM}


@pytest.mark.parametrize("server", ["node"], indirect=True)
async def test_the_tape_has_the_event_ids_that_the_server_gave(
    connect: Connect, proxied_store: MemoryStore, wire: Wire
) -> None:
    async with connect(NEWEST) as client:
        await client.list_tools()
        await client.call_tool("trigger-long-running-operation", {"duration": 0.1, "steps": 2})
        await client.call_tool("echo", {"message": "last"})
        await client.list_prompts()
        tape = await tape_up_to("prompts/list", proxied_store, wire.session_id)

    answers = [frame for frame in tape if frame.envelope.kind == "response"]
    assert len(answers) == 5
    assert all(frame.event_id for frame in answers)
    assert len({frame.event_id for frame in answers}) == 5
    assert said(answers[3])["result"]["content"][0]["text"] == "Echo: last"


@pytest.mark.parametrize("server", ["sse", "json"], indirect=True)
async def test_conversations_without_sessions_are_on_one_tape_and_told_apart(
    connect: Connect, proxied_store: MemoryStore, wire: Wire
) -> None:
    """Two clients without credentials, whose requests have the same ids."""
    async with connect(MODERN) as one, connect(MODERN, Wire()) as other, anyio.create_task_group() as calls:
        for number, client in enumerate((one, other) * 3):
            calls.start_soon(client.call_tool, "echo", {"text": str(number)})
    assert wire.session_ids == set()

    sessions: list[Session] = []
    answered: dict[str, str] = {}
    while len(answered) < 6:  # it is written behind the traffic
        await anyio.lowlevel.checkpoint()
        sessions = (await proxied_store.list_sessions()).sessions
        tape = [frame for each in sessions for frame in await proxied_store.get_frames(each.id)]
        asked = {
            frame.stream: said(frame)["params"]["arguments"]["text"]
            for frame in tape
            if frame.envelope.method == "tools/call"
        }
        answered = {
            asked[frame.stream]: said(frame)["result"]["content"][0]["text"]
            for frame in tape
            if frame.stream in asked and frame.envelope.kind == "response"
        }
    assert len(sessions) == 1
    assert answered == {str(number): str(number) for number in range(6)}
