"""The servers, and the two ways to one: directly and through `shadowcat serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.real._node import NODE, everything_server
from tests.real._process import ServerProcess
from tests.support.serve_command import serve_command

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = HERE / "node" / "node_modules"


def sdk_source() -> Path:
    """Return where the Python SDK's source distribution lies, of the version that is installed."""
    (source,) = (HERE / ".cache").glob("mcp-*/")
    return source


def environment() -> dict[str, str]:
    """Return the environment in which the SDK's examples can be imported, and we."""
    source = sdk_source()
    paths = [ROOT, source / "examples", source / "examples" / "servers" / "everything-server"]
    given = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*([given] if given else []), *map(str, paths)])}


def python_server(*what: str, port: int = 0, env: Mapping[str, str] | None = None) -> ServerProcess:
    """Start one of the Python SDK's example servers: see `upstream.py`."""
    command = [sys.executable, "-m", "tests.conformance.upstream", str(port), *what]
    return ServerProcess(" ".join(what), command, env={**environment(), **(env or {})})


def node_server(transport: str = "streamableHttp") -> ServerProcess:
    """Start npm's everything server."""
    return everything_server(transport=transport)


def modern_server() -> ServerProcess:
    """Start a server on the TypeScript SDK that speaks 2026-07-28 and nothing older."""
    return ServerProcess("the modern server", [str(NODE), str(HERE / "node" / "modern.mjs")])


@asynccontextmanager
async def through(upstream: str, port: int = 0) -> AsyncIterator[str]:
    """Run the proxy in front of a server, as a user runs it; give its MCP URL."""
    with TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/sessions.db"
        # The last --port counts.
        async with serve_command(upstream, store, "--port", str(port), auth_endpoints=True) as served:
            yield served.url
