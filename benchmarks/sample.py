"""A real MCP server for the peers, on the Python SDK: one tool, and a ledger of what arrives.

A byte is added to the ledger's file for each HTTP request or line on stdin, and one for each run of the tool.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import BinaryIO

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.types import ASGIApp, Receive, Scope, Send

from .processes import end_with_parent

REQUEST, RUN = b"r", b"t"


class CountedInput(io.BufferedReader):
    """Standard input, each line of which is a message."""

    def __init__(self, ledger: BinaryIO) -> None:
        super().__init__(io.FileIO(os.dup(0)))
        self.ledger = ledger

    def read1(self, size: int = -1) -> bytes:
        data = super().read1(size)
        self.ledger.write(REQUEST * data.count(b"\n"))
        return data


def create_server(ledger: BinaryIO) -> MCPServer:
    server = MCPServer("benchmark", log_level="WARNING")

    @server.tool()
    async def echo(text: str) -> str:
        """Return the text."""
        ledger.write(RUN)
        return text

    return server


def counted(app: ASGIApp, ledger: BinaryIO) -> ASGIApp:
    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            ledger.write(REQUEST)
        await app(scope, receive, send)

    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample", description=__doc__)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--port", type=int, help="default: stdin and stdout")
    given = parser.parse_args()
    end_with_parent()
    with Path(given.ledger).open("ab", buffering=0) as ledger:
        server = create_server(ledger)
        if given.port:
            app = counted(server.streamable_http_app(), ledger)
            uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", access_log=False)
        else:
            sys.stdin = io.TextIOWrapper(CountedInput(ledger), encoding="utf-8")
            server.run("stdio")


if __name__ == "__main__":
    main()
