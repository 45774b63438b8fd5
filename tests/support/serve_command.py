"""`shadowcat serve` as a child process, ready and told where."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from tests.commands._command import Command, started

DEADLINE = 180.0
"""Seconds that a whole test may take. Only one that fails ever gets there."""


class Served:
    """A running proxy."""

    def __init__(self, command: Command, base: str) -> None:
        self.command = command
        self.base = base
        self.url = base + "/mcp"

    async def metric(self, http: httpx2.AsyncClient, name: str) -> int:
        """Return a counter or gauge by its name without the prefix."""
        text = (await http.get(self.base + "/metrics")).text
        found = re.search(rf"^shadowcat_{re.escape(name)} (\d+)$", text, re.MULTILINE)
        assert found is not None, text
        return int(found[1])


@asynccontextmanager
async def serve_command(
    upstream: str, store: str, *options: str, **settings: object
) -> AsyncIterator[Served]:
    """Run it on a free port with these settings, given as a deployment gives them: in the environment."""
    env = {f"SHADOWCAT_{name.upper()}": str(value) for name, value in settings.items()}
    argv = ("serve", "--port", "0", "--upstream", upstream, "--store", store, *options)
    async with started("shadowcat", *argv, env=env) as command:
        said = await command.says(r"(http://\S+:\d+)/mcp -> [^\n]*\n(?s:.*)Ctrl-C stops")
        yield Served(command, said[1])
