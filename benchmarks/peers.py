"""Other proxies and gateways for MCP, as they come from PyPI and npm, on the same work as Shadowcat."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from . import environments
from .bench import tell
from .environments import script
from .processes import Children, Cores, free_port, module
from .stacks import SQLITE, shadowcat

BUDGET = 270.0
"""Seconds, after the installations; nothing is begun later."""
PATIENCE = 40.0
"""Seconds for a load beyond its own: the load waits 15 s for an answer."""
CONNECTIONS = (16, 4, 1)
"""With how many a peer is tried, until one run has no error."""

Command = Callable[[str, int, Path], list[str]]
"""From the URL of the server (its command line where it is on stdio), the port and a directory of its own."""


@dataclass(frozen=True)
class Peer:
    name: str
    label: str
    command: Command | None = None
    """`None`: the load talks to the server itself."""
    stdio: bool = False
    """Whether its server is a process on stdio, not one over HTTP."""
    environment: str = ""


def _mcp_proxy_stdio(server: str, port: int, directory: Path) -> list[str]:
    return [*script("mcp-proxy", "mcp-proxy"), "--port", str(port), "--", *shlex.split(server)]


def _mcp_proxy_http(server: str, port: int, directory: Path) -> list[str]:
    """It serves what is on stdio, or turns HTTP into stdio: so two of them."""
    inner = [*script("mcp-proxy", "mcp-proxy"), "--transport", "streamablehttp", server]
    return _mcp_proxy_stdio(shlex.join(inner), port, directory)


def _fastmcp(server: str, port: int, directory: Path) -> list[str]:
    where = ["--transport", "http", "--host", "127.0.0.1", "--port", str(port)]
    quiet = ["--no-banner", "--log-level", "ERROR", "--skip-env", "--skip-source"]
    return [*script("fastmcp", "fastmcp"), "run", server, *where, *quiet]


def _mcp_persist(server: str, port: int, directory: Path) -> list[str]:
    store = ["--backend", "sqlite", "--url", str(directory / "events.db")]
    where = ["--upstream", server.removesuffix("/mcp"), "--host", "127.0.0.1", "--port", str(port)]
    return [*script("mcp-persist", "mcp-persist-proxy"), *where, *store]


def _npm_mcp_proxy(server: str, port: int, directory: Path) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port), "--server", "stream"]
    return [*script("npm-mcp-proxy", "mcp-proxy"), *where, "--", *shlex.split(server)]


def _supergateway(server: str, port: int, directory: Path) -> list[str]:
    where = ["--outputTransport", "streamableHttp", "--stateful", "--port", str(port)]
    return [*script("npm-supergateway", "supergateway"), "--stdio", server, *where, "--logLevel", "none"]


PEERS = (
    Peer("direct", "direct, no proxy"),
    Peer("shadowcat", "**Shadowcat**, tape window, sqlite store", shadowcat("window", SQLITE).command),
    Peer("mcp-persist", "mcp-persist (PyPI), sqlite", _mcp_persist, environment="mcp-persist"),
    Peer("mcp-proxy-http", "mcp-proxy (PyPI), two in a row", _mcp_proxy_http, environment="mcp-proxy"),
    Peer("fastmcp", "FastMCP proxy (PyPI)", _fastmcp, environment="fastmcp"),
    Peer("mcp-proxy-stdio", "mcp-proxy (PyPI)", _mcp_proxy_stdio, stdio=True, environment="mcp-proxy"),
    Peer("npm-mcp-proxy", "mcp-proxy (npm)", _npm_mcp_proxy, stdio=True, environment="npm-mcp-proxy"),
    Peer("supergateway", "supergateway (npm)", _supergateway, stdio=True, environment="npm-supergateway"),
)


@dataclass(frozen=True)
class Plan:
    peers: tuple[Peer, ...]
    rounds: int
    seconds: float
    warmup: float = 0.3


@dataclass
class Row:
    """One peer in front of one server."""

    peer: Peer
    port: int
    ledger: str
    connections: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Found:
    """What came out, by server: `real`, the sample; `stub`, which answers at once."""

    real: list[Row] = field(default_factory=list)
    stub: list[Row] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What did not work, and why."""

    @property
    def failed(self) -> bool:
        """Whether Shadowcat, or nothing in between, gave a wrong answer or none."""
        ours = [row for row in (*self.real, *self.stub) if not row.peer.environment]
        return any(not row.runs or any(run["errors"] for run in row.runs) for row in ours)


def run(plan: Plan, cores: Cores) -> Found:
    """All peers that can be had run all the time and take turns."""
    found = Found()
    usable = [peer for peer in plan.peers if _is_installed(peer, found)]
    end = monotonic() + BUDGET
    with Children() as children:
        race = Race(plan, children, cores, found, end)
        for peer in usable:
            race.enter(peer, "real", found.real)
            if not peer.stdio:
                race.enter(peer, "stub", found.stub)
        for number in range(plan.rounds):
            for row in (*found.real, *found.stub):
                race.turn(row, number)
    return found


def _is_installed(peer: Peer, found: Found) -> bool:
    problem = environments.install(peer.environment) if peer.environment else ""
    if problem:
        found.broken.append(f"{peer.label}: {problem}")
    return not problem


@dataclass
class Race:
    """The peers, each with a server of its own."""

    plan: Plan
    children: Children
    cores: Cores
    found: Found
    end: float

    def enter(self, peer: Peer, server: str, rows: list[Row]) -> None:
        """Start it, and see with how many connections it works; where with none, that is noted."""
        if monotonic() > self.end:
            self.found.broken.append(f"{peer.label}, {server} server: no time was left")
            return
        problem = ""
        try:
            row = self.start(peer, server)
            for row.connections in CONNECTIONS:
                problem = self.attempt(row, 0.5)
                if not problem:
                    rows.append(row)
                    return
        except (RuntimeError, OSError) as error:
            problem = str(error)
        tell(f"{server} {peer.name}: {problem}")
        self.found.broken.append(f"{peer.label}, {server} server: {problem.splitlines()[-1]}")

    def start(self, peer: Peer, server: str) -> Row:
        directory = self.children.directory / f"{server}-{peer.name}"
        directory.mkdir()
        ledger = directory / "ledger"
        ledger.touch()
        name, port = f"{directory.name}-server", free_port()
        command = [sys.executable, "-m", "benchmarks.sample", "--ledger", str(ledger)]
        if server == "stub":
            command = module("upstream", "--port", port)
        elif not peer.stdio:
            command += ["--port", str(port)]
        where = shlex.join(command) if peer.stdio else f"http://127.0.0.1:{port}/mcp"
        if not peer.stdio:
            self.children.start_server(name, command, self.cores.stub, port)
        if peer.command:
            port = free_port()
            started = peer.command(where, port, directory)
            self.children.start_server(directory.name, started, self.cores.proxy, port)
        return Row(peer, port, str(ledger))

    def attempt(self, row: Row, seconds: float) -> str:
        """Run a short load, which also warms up; what went wrong."""
        try:
            errors = self.load(row, seconds)["errors"]
        except (RuntimeError, subprocess.SubprocessError) as error:
            return str(error)
        return ", ".join(f"{count} × {what}" for what, count in errors.items())

    def turn(self, row: Row, number: int) -> None:
        if monotonic() > self.end:
            return
        try:
            result = self.load(row, self.plan.seconds)
        except (RuntimeError, subprocess.SubprocessError) as error:
            self.found.broken.append(f"{row.peer.label}, round {number + 1}: {str(error).splitlines()[-1]}")
            return
        row.runs.append(result)
        tell(f"round {number + 1}/{self.plan.rounds} {row.peer.name:18} {result['rate']:9,.0f}/s")

    def load(self, row: Row, seconds: float) -> dict[str, Any]:
        options = ["--url", f"http://127.0.0.1:{row.port}/mcp", "--connections", row.connections]
        options += ["--seconds", seconds, "--warmup", self.plan.warmup, "--ledger", row.ledger]
        printed = self.children.run(module("load", *options), self.cores.load, seconds + PATIENCE)
        return dict(json.loads(printed))
