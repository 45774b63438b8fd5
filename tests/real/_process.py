"""MCP servers as child processes: on a free port, ready when they print it, stopped at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from tests.support.plain import plain_http

SAMPLE = Path(__file__).parent / "servers" / "everything.py"

DEADLINE = 20.0
"""Seconds that anything here may take: a server's start, a whole conversation. Only what fails gets there."""


class ServerProcess:
    """A server that prints `listening on port N`, or `running`, and tells at `/_requests/ID` what it got."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, path: str = "/mcp"
    ) -> None:
        self.name = name
        self.path = path
        self.port = 0
        self._output: list[str] = []
        self._shown = 0
        self._listening = threading.Event()
        # Nothing of ours runs there. Measuring its coverage would make it start half as fast.
        own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        self._process = subprocess.Popen(
            command,
            env={**own, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The MCP endpoint."""
        return self.origin + self.path

    def new_output(self) -> str:
        """Return what it printed since the last call."""
        lines, self._shown = self._output[self._shown :], len(self._output)
        return "".join(lines)

    async def requests_of(self, client_id: str) -> list[str]:
        """Return the verbs of the MCP requests that reached the server from this client, in order."""
        verbs: list[str] = (await self._call("GET", f"/_requests/{client_id}")).json()
        return verbs

    async def bodies_of(self, client_id: str) -> list[str]:
        """Return the bodies of the MCP requests that reached a Node server from this client, in order."""
        bodies: list[str] = (await self._call("GET", f"/_calls/{client_id}")).json()
        return bodies

    async def _call(self, verb: str, path: str, body: bytes | None = None) -> httpx2.Response:
        async with plain_http() as http:
            response = await http.request(verb, f"{self.origin}{path}", content=body)
            return response.raise_for_status()

    def __enter__(self) -> Self:
        if self._listening.wait(DEADLINE) and self.port:
            return self
        self._stop()
        raise RuntimeError(f"{self.name} did not start; it printed:\n{self.new_output()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.append(line)
            if not self.port and (said := re.search(r"(?:listening|running) on port (\d+)", line)):
                self.port = int(said[1])
                self._listening.set()
        self._listening.set()  # it ended: nobody needs to wait any longer


class PythonServer(ServerProcess):
    """`servers/everything.py`, with its side channel."""

    def __init__(self, name: str, *options: str) -> None:
        path = "/deep/sse" if "--http-sse" in options else "/mcp"
        super().__init__(name, [sys.executable, str(SAMPLE), *options], path=path)
        self.media_type = "application/json" if "--json" in options else "text/event-stream"
        """How it answers requests in the revisions with sessions."""

    async def give(self, signal: str) -> None:
        """Let whoever waits for the signal go on."""
        await self._call("POST", f"/_signals/{signal}")

    async def wait_for(self, signal: str) -> None:
        """Return once the signal was given."""
        await self._call("GET", f"/_signals/{signal}")

    async def change_note(self, name: str, text: str) -> None:
        """Change the resource `note://NAME`; its subscribers are told."""
        await self._call("POST", f"/_notes/{name}", text.encode())
