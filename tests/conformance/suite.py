"""The official conformance suite (npm `@modelcontextprotocol/conformance`), both releases of it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from tempfile import TemporaryDirectory

import anyio

from tests.conformance.compare import Check
from tests.conformance.routes import MODULES, ROOT, environment, sdk_source
from tests.real._node import NODE

REVISIONS = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")

_TIMEOUT_MS = 60_000
_DEADLINE = 600.0
_AT_A_TIME = 2
"""Client scenarios: each starts processes, and some wait in real time for what must come soon."""


@dataclass(frozen=True)
class Suite:
    """A release of the suite."""

    name: str

    @property
    def folder(self) -> Path:
        return MODULES / f"conformance-{self.name}"

    @property
    def version(self) -> str:
        """Its version, as its package says."""
        version: str = json.loads((self.folder / "package.json").read_text("utf-8"))["version"]
        return version

    async def run(self, *arguments: str) -> str:
        """Run its command; return what it printed. Its exit code says little: the checks it leaves count."""
        command = [str(NODE), str(self.folder / "dist" / "index.js"), *arguments]
        with anyio.fail_after(_DEADLINE):
            done = await anyio.run_process(command, check=False, stderr=STDOUT, cwd=ROOT, env=environment())
        return done.stdout.decode()

    async def server_checks(self, url: str, revision: str | None) -> list[Check]:
        """Play the client against the server at the URL; return all checks."""
        with TemporaryDirectory() as folder:
            # `localhost`: the scenario on DNS rebinding insists on that name.
            where = url.replace("127.0.0.1", "localhost")
            printed = await self.run("server", "--url", where, "--suite", "all", "-o", folder, *_at(revision))
            return _read(Path(folder), "server-", printed)

    async def client_scenarios(self, revision: str | None) -> list[str]:
        """Return the names of what it can play to a client."""
        listed = await self.run("list", "--client", *_at(revision))
        return re.findall(r"^  - (\S+)", listed, re.MULTILINE)

    async def client_checks(
        self, scenarios: Sequence[str], revision: str | None, *, proxied: bool
    ) -> list[Check]:
        """Play the server to the Python SDK's conformance client; return all checks."""
        client = [sys.executable, str(sdk_source() / ".github" / "actions" / "conformance" / "client.py")]
        if proxied:
            client = [sys.executable, "-m", "tests.conformance.between", *client]
        checks: list[Check] = []
        turns = anyio.CapacityLimiter(_AT_A_TIME)

        async def play(scenario: str) -> None:
            async with turns:
                with TemporaryDirectory() as folder:
                    options = ["--scenario", scenario, "--timeout", str(_TIMEOUT_MS), "-o", folder]
                    printed = await self.run(
                        "client", "--command", shlex.join(client), *options, *_at(revision)
                    )
                    checks.extend(_read(Path(folder), "", printed))

        async with anyio.create_task_group() as tasks:
            for scenario in scenarios:
                tasks.start_soon(play, scenario)
        return checks


def _at(revision: str | None) -> list[str]:
    return [] if revision is None else ["--spec-version", revision]


def _read(folder: Path, prefix: str, printed: str) -> list[Check]:
    found = []
    for file in sorted(folder.rglob("checks.json")):
        name = file.parent.relative_to(folder).as_posix().removeprefix(prefix)
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", name)
        for check in json.loads(file.read_text("utf-8")):
            status = check["status"]
            if status != "INFO":  # what the suite saw on its way, not what it found
                message = check.get("errorMessage", "")
                found.append(Check(scenario, check["id"], status, status == "SUCCESS", message))
    if not found:
        raise SystemExit(f"the conformance suite left no checks; it printed:\n{printed}")
    return found
