"""The TypeScript SDK's client on npm's everything server: `node/client.mjs` plays each scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.real._node import run_client
from tests.real._process import ServerProcess
from tests.real.conftest import Route

Play = Callable[[str], Awaitable[dict[str, Any]]]


@pytest.fixture
def play(route: Route, node_server: ServerProcess) -> Play:
    """Play a scenario, and check what every conversation has in common: how it opens and how it ends."""

    async def player(scenario: str) -> dict[str, Any]:
        result = await run_client(await route.url_for(node_server.url), scenario)
        # This server asks for roots unasked, and the client's answer may cross its own DELETE: then the proxy
        # refuses it and asks nobody (404), or the server, which forgot the session first, refuses it (400).
        if route.name == "proxied":
            result["wire"] = [each for each in result["wire"] if each[:2] != ["POST", 404]]
        sent = Counter(verb for verb, *_ in result["wire"])
        assert Counter(await node_server.requests_of(result["clientId"])) == sent
        result["wire"] = [each for each in result["wire"] if each[:2] != ["POST", 400]]
        assert result["wire"][:2] == [["POST", 200, "text/event-stream"], ["POST", 202, ""]]
        assert ["GET", 200, "text/event-stream"] in result["wire"]
        assert result["wire"][-1][:2] == ["DELETE", 200]
        # 404 is what the specification asks for. This server says 400; the proxy ended the session itself.
        status, body = result["afterwards"]
        assert status == {"direct": 400, "proxied": 404}[route.name]
        assert "error" in body
        return result

    return player


async def test_initialize(play: Play) -> None:
    result = await play("initialize")

    assert result["server"]["name"] == "mcp-servers/everything"
    assert result["revision"] == "2025-11-25"
    assert result["capabilities"]["resources"] == {"subscribe": True, "listChanged": True}


async def test_list_tools(play: Play) -> None:
    result = await play("tools")

    # The last three exist only for a client whose capabilities reached the server.
    expected = {
        "echo",
        "get-sum",
        "get-roots-list",
        "trigger-elicitation-request",
        "trigger-sampling-request",
    }
    assert expected <= set(result["tools"])


async def test_call_a_tool(play: Play) -> None:
    result = await play("echo")

    assert result["said"] == "Echo: grüß dich 🐈"
    assert Counter(verb for verb, *_ in result["wire"]) == {"POST": 3, "GET": 1, "DELETE": 1}


async def test_each_step_of_progress_arrives_and_then_the_result(play: Play) -> None:
    result = await play("progress")

    assert result["seen"] == [[1, 4], [2, 4], [3, 4], [4, 4]]
    assert "completed" in result["said"]


async def test_progress_arrives_in_time_and_a_cancelled_call_leaves_the_session_usable(play: Play) -> None:
    result = await play("cancel")

    assert result["seen"][:3] == [1, 2, 3]
    assert result["outcome"] == "cancelled"
    assert result["said"] == "Echo: still here"


async def test_elicitation_goes_there_and_back_within_a_call(play: Play) -> None:
    result = await play("elicit")

    assert result["asked"] == [["elicitation/create", "Please provide inputs for the following fields:"]]
    assert "- Name: Ada" in result["said"]


async def test_sampling_goes_there_and_back_within_a_call(play: Play) -> None:
    result = await play("sample")

    question = "Resource trigger-sampling-request context: six times seven?"
    assert result["asked"] == [["sampling/createMessage", question]]
    assert "forty-two" in result["said"]


async def test_the_server_asks_on_the_get_stream_while_a_call_waits(play: Play) -> None:
    result = await play("roots")

    assert ["roots/list"] in result["asked"]
    assert "file:///srv/ada" in result["said"]


async def test_resource_updates_arrive_on_the_get_stream(play: Play) -> None:
    result = await play("subscribe")

    assert result["updated"] == result["uri"]
