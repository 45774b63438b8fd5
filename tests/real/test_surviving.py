"""Clients whose connection is cut again and again, by a proxy that is restarted as well, get their result.

Their server is npm's: it gives event ids, and a stream of its own to whoever comes back.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ClientMessageMetadata
from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult

from tests.real._client import Wire, open_client, text_of
from tests.real._node import run_client
from tests.real._process import ServerProcess
from tests.support.serve_command import Served, serve_command
from tests.support.splitter import Splitter, splitting

DURATION = float(os.environ.get("SURVIVING_SECONDS", "4"))
"""Seconds that the tool takes; `make faults` gives it 30."""
STEPS = 40
CUTS = (3, 9, 15, 27, 33)
"""The steps at whose news every connection of the client's is cut."""
RESTART = 21
"""The step at whose news the proxy is restarted."""
DEADLINE = DURATION + 40


class Saboteur(Splitter):
    """What is between the client and the proxy: it cuts them off at chosen steps of the tool."""

    def __init__(self, cuts: Collection[int], restart: int) -> None:
        super().__init__(())
        self.done: list[int] = []
        """The steps at which it has cut."""
        self.restart = anyio.Event()
        """Set when it is time to restart the proxy."""
        self._cuts = sorted(cuts)
        self._restart = restart

    def passed(self, data: bytes) -> None:
        step = max(map(int, re.findall(rb'"progress":(\d+)', data)), default=0)
        if step >= self._restart:
            self.restart.set()
        if self._cuts and step >= self._cuts[0]:
            self.done.append(self._cuts.pop(0))
            self.cut()


@dataclass
class Survivor:
    """What a client has to show for it."""

    client_id: str
    session_id: str
    said: str
    seen: list[float]
    """The steps it was told of, in order."""


async def python_client(url: str) -> Survivor:
    """Call the tool by the Python SDK's client, which comes back by itself at most twice without news; with the
    resumption token for a third time."""
    wire, seen, tokens = Wire(), list[float](), list[str]()
    params = CallToolRequestParams(
        name="trigger-long-running-operation", arguments={"duration": DURATION, "steps": STEPS}
    )

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async def on_token(token: str) -> None:
        tokens.append(token)

    async with open_client(url, "2025-11-25", wire, deadline=DEADLINE) as client:
        result = None
        while result is None:
            again = tokens[-1] if tokens else None
            try:
                result = await client.session.send_request(
                    CallToolRequest(params=params),
                    CallToolResult,
                    metadata=ClientMessageMetadata(
                        resumption_token=again, on_resumption_token_update=on_token
                    ),
                    progress_callback=on_progress,
                )
            except MCPError as error:
                if "reconnection attempts were exhausted" not in str(error):
                    raise
    return Survivor(wire.client_id, wire.session_id, text_of(result), seen)


async def typescript_client(url: str) -> Survivor:
    """Call the tool by the TypeScript SDK's client, which comes back by itself."""
    result = await run_client(url, "survive", DURATION, STEPS, deadline=DEADLINE)
    return Survivor(result["clientId"], result["sessionId"], result["said"], result["seen"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("client", [python_client, typescript_client])
async def test_a_call_outlives_its_connections_and_the_proxy(
    node_server: ServerProcess,
    tmp_path: Path,
    client: Callable[[str], Awaitable[Survivor]],
    number: signal.Signals,
) -> None:
    store_url = f"sqlite:///{tmp_path / 'sessions.db'}"

    async def restart(between: Saboteur, first: Served, over: anyio.Event) -> None:
        await between.restart.wait()
        first.command.send(number)
        await first.command.ends()
        async with serve_command(node_server.url, store_url) as again:
            between.lead_to(again.base)
            await over.wait()

    with anyio.fail_after(DEADLINE):
        async with (
            serve_command(node_server.url, store_url) as first,
            splitting(Saboteur(CUTS, RESTART)) as between,
            anyio.create_task_group() as tasks,
        ):
            between.lead_to(first.base)
            over = anyio.Event()
            tasks.start_soon(restart, between, first, over)
            survivor = await client(between.base + "/mcp")
            over.set()
    assert survivor.said == f"Long running operation completed. Duration: {DURATION:g} seconds, Steps: {STEPS}."
    assert between.done == list(CUTS)
    bodies = [json.loads(each) for each in await node_server.bodies_of(survivor.client_id)]
    assert [each["method"] for each in bodies if "method" in each].count("tools/call") == 1
