"""The Python SDK's examples that speak HTTP ("stories"): the client of each, at each era, on both variants of
its server."""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from subprocess import STDOUT
from typing import Any

import anyio

from tests.conformance.compare import Check
from tests.conformance.routes import environment, python_server, sdk_source, through

_AT_A_TIME = 2
"""Each starts two or three processes, which takes most of its time."""


@dataclass(frozen=True)
class Story:
    """One run of an example."""

    name: str
    module: str
    era: str
    path: str
    port: int
    """Where it says that it is; 0: anywhere."""
    env: Mapping[str, str]

    @property
    def scenario(self) -> str:
        return f"{self.name}/{self.module}"

    async def checks(self, *, proxied: bool) -> list[Check]:
        """Run it; its exit code is the check."""
        # Behind the proxy the server is elsewhere: the address it names is the proxy's.
        port = 0 if proxied else self.port
        with python_server("story", self.name, self.module, port=port, env=self.env) as server:
            if not proxied:
                return [await self._run(server.origin + self.path)]
            async with through(server.origin + self.path, self.port) as url:
                return [await self._run(url)]

    async def _run(self, url: str) -> Check:
        era = ["--legacy"] if self.era == "legacy" else []
        command = [sys.executable, "-m", f"stories.{self.name}.client", "--http", url, *era]
        with anyio.fail_after(60):
            done = await anyio.run_process(
                command, check=False, stderr=STDOUT, env=environment() | dict(self.env)
            )
        lines = [line for line in done.stdout.decode().splitlines() if re.search(r"\w+(Error|Exit)\b", line)]
        passed = done.returncode == 0
        return Check(
            self.scenario,
            self.era,
            "OK" if passed else "FAIL",
            passed,
            "".join(lines[-1:]).strip(" |"),
        )


async def play(chosen: Iterable[Story], *, proxied: bool) -> list[Check]:
    """Run them, some at a time; not those of one example, nor those at one port."""
    checks: list[Check] = []
    turns = anyio.CapacityLimiter(_AT_A_TIME)
    alone: dict[str | int, anyio.Lock] = defaultdict(anyio.Lock)

    async def run(story: Story) -> None:
        async with alone[story.port or story.name], turns:
            checks.extend(await story.checks(proxied=proxied))

    async with anyio.create_task_group() as tasks:
        for story in chosen:
            tasks.start_soon(run, story)
    return checks


def stories() -> Iterator[Story]:
    """Yield the runs that the examples' manifest asks for over HTTP."""
    manifest = tomllib.loads((sdk_source() / "examples" / "stories" / "manifest.toml").read_text("utf-8"))
    for name, entry in manifest["story"].items():
        story: dict[str, Any] = manifest["defaults"] | entry
        if "http-asgi" not in story["transports"]:
            continue
        eras = ("modern", "legacy") if story["era"] == "dual" else (story["era"],)
        for module in ("server", "server_lowlevel") if story["lowlevel"] else ("server",):
            for era in eras:
                yield Story(name, module, era, story["mcp_path"], story["fixed_port"], story["env"])
