"""Clients of every era against servers of every era: what they find or are told is the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio

from tests.conformance.compare import Check
from tests.conformance.routes import (
    HERE,
    MODULES,
    environment,
    modern_server,
    node_server,
    python_server,
    through,
)
from tests.real._node import NODE
from tests.real._process import ServerProcess

SERVERS: Final[dict[str, tuple[Callable[[], ServerProcess], str]]] = {
    "both eras": (lambda: python_server("everything"), "test_simple_text"),
    "2024": (partial(node_server, "sse"), "get-tiny-image"),
    "2025": (node_server, "get-tiny-image"),
    "2026 only": (modern_server, "hello"),
}
"""Servers, each with the name of a tool that takes no arguments."""

_INSPECTOR: Final = (
    MODULES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
)


async def client_checks(server: str, *, proxied: bool) -> list[Check]:
    """Run all clients against a server."""
    start, tool = SERVERS[server]
    with start() as running:
        if not proxied:
            return await _checks(server, running.url, tool)
        async with through(running.url) as url:
            return await _checks(server, url, tool)


async def _checks(server: str, url: str, tool: str) -> list[Check]:
    checks = []
    for mode in ("sse", "legacy", "auto", "2026-07-28"):
        command = [str(NODE), str(HERE / "node" / "client.mjs"), url, mode, tool]
        checks.append(await _run(f"TypeScript SDK / {server}", mode, command, url))
    for how in (
        ("http", "--protocol-era", "legacy"),
        ("http", "--protocol-era", "auto"),
        ("http", "--protocol-era", "modern"),
        ("sse",),
    ):
        for method in (["tools/list"], ["tools/call", "--tool-name", tool]):
            command = [str(NODE), str(_INSPECTOR), "--cli", url, "--transport", *how, "--method", *method]
            name = f"{how[0]} {how[-1]} {method[0]}"
            checks.append(await _run(f"Inspector / {server}", name, command, url))
    return checks


async def _run(scenario: str, name: str, command: Sequence[str], url: str) -> Check:
    with TemporaryDirectory() as home, anyio.fail_after(60):  # the Inspector keeps files in it
        done = await anyio.run_process(
            command, check=False, env=environment() | {"HOME": home, "NO_COLOR": "1"}, cwd=Path(home)
        )
    said = (done.stdout + done.stderr).decode().replace(url, "URL").strip()
    outcome = f"{done.returncode} {said}"
    return Check(scenario, name, outcome, done.returncode == 0 and not _is_error(said))


def _is_error(said: str) -> bool:
    try:
        return "error" in json.loads(said)
    except ValueError:
        return False
