"""Clients whose connection is cut again and again, by a proxy that is restarted as well, get their result.

Their server is npm's: it gives event ids. Whoever comes back gets from it what has come by then, and nothing
of what comes later.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from tests.real._client import Wire, open_client, text_of
from tests.real._node import run_client
from tests.real._process import ServerProcess
from tests.support.serve_command import Served, serve_command
from tests.support.splitter import Splitter, splitting

DURATION = float(os.environ.get("SURVIVING_SECONDS", "4"))
"""Seconds that the tool takes. The full trial takes 30."""
STEPS = 40
CUTS = {3: "broken", 9: "broken", 15: "ended", 21: "broken", 27: "ended"}
"""The steps at whose news every connection of the client's is cut, and how the one with the news ends: as one
that is broken, or as one that is whole. After three that break the Python SDK's client would give up."""
RESTART = 33
"""The step at whose news the proxy is restarted."""
DEADLINE = DURATION + 60


class Saboteur(Splitter):
    """What is between the client and the proxy: it cuts them off at chosen steps of the tool."""

    def __init__(self) -> None:
        super().__init__(())
        self.done: list[int] = []
        """The steps at which it has cut."""
        self.restart = anyio.Event()
        """Set when it is time to restart the proxy."""
        self._cuts = sorted(CUTS)
        self._heard: set[asyncio.StreamWriter] = set()

    def passed(self, client: asyncio.StreamWriter, data: bytes) -> bytes:
        step = max(map(int, re.findall(rb'"progress":(\d+)', data)), default=0)
        if step >= RESTART:
            self.restart.set()
        # The TypeScript SDK forgets where it was when a connection brings no event at all.
        if not self._cuts or step < self._cuts[0] or client not in self._heard:
            if step:
                self._heard.add(client)
            return data
        self.done.append(self._cuts.pop(0))
        self.cut()
        return b"" if CUTS[self.done[-1]] == "broken" else b"0\r\n\r\n"


@dataclass
class Survivor:
    """What a client has to show for it."""

    client_id: str
    said: str
    seen: list[float]
    """The steps it was told of, in order."""


async def python_client(url: str) -> Survivor:
    """Call the tool by the Python SDK's client."""
    wire, seen = Wire(), list[float]()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with open_client(url, "2025-11-25", wire, deadline=DEADLINE) as client:
        operation = {"duration": DURATION, "steps": STEPS}
        done = await client.call_tool(
            "trigger-long-running-operation", operation, progress_callback=on_progress
        )
    return Survivor(wire.client_id, text_of(done), seen)


async def typescript_client(url: str) -> Survivor:
    """Call the tool by the TypeScript SDK's client, which comes back by itself."""
    result = await run_client(url, "survive", DURATION, STEPS, deadline=DEADLINE)
    return Survivor(result["clientId"], result["said"], result["seen"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("client", [python_client, typescript_client])
async def test_a_call_outlives_its_connections_and_the_proxy(
    node_server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: Callable[[str], Awaitable[Survivor]],
    number: signal.Signals,
) -> None:
    # There is no argument for it, and the server names no other.
    monkeypatch.setattr("mcp.client.streamable_http.DEFAULT_RECONNECTION_DELAY_MS", 200)
    store_url = f"sqlite:///{tmp_path / 'sessions.db'}"

    async def restart(between: Saboteur, first: Served, over: anyio.Event) -> None:
        await between.restart.wait()
        between.lead_to()
        first.command.send(number)
        await first.command.ends()
        async with serve_command(node_server.url, store_url) as again:
            between.lead_to(again.base)
            await over.wait()

    with anyio.fail_after(DEADLINE):
        async with (
            serve_command(node_server.url, store_url) as first,
            splitting(Saboteur()) as between,
            anyio.create_task_group() as tasks,
        ):
            between.lead_to(first.base)
            over = anyio.Event()
            tasks.start_soon(restart, between, first, over)
            survivor = await client(between.base + "/mcp")
            over.set()
    assert (
        survivor.said == f"Long running operation completed. Duration: {DURATION:g} seconds, Steps: {STEPS}."
    )
    assert between.done == list(CUTS)
    assert sorted(set(survivor.seen)) == list(range(1, STEPS + 1))
    bodies = [json.loads(each) for each in await node_server.bodies_of(survivor.client_id)]
    assert [each["method"] for each in bodies if "method" in each].count("tools/call") == 1
