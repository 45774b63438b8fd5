"""Runs the demo: the sample server, the proxy in front of it, and the tour through both."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from typing import IO, Any, cast

import anyio
import click

from shadowcat import __version__, create_app
from shadowcat.demo.tour import Tour
from shadowcat.serving import Server, address, listen
from shadowcat.settings import Settings
from shadowcat_stores import MemoryStore

_HOST = "127.0.0.1"
_GRACE = 2.0

# Prose between the commands, no comments: an interactive zsh takes `#` for a command.
_NEXT = """
The proxy goes on; Ctrl-C stops it. The address for an MCP client (Streamable HTTP):

  URL/mcp

Or paste in another terminal. This begins a session, and shows its id, which is Shadowcat's own:

  JSON='Content-Type: application/json' BOTH='Accept: application/json, text/event-stream'
  SESSION=$(curl -sS -o /dev/null -D - URL/mcp -H "$JSON" -H "$BOTH" -d '{
    "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
    "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}}' |
    tr -d '\\r' | sed -n 's/^mcp-session-id: //p'); echo "$SESSION"

This calls a tool in it, and the events come one by one:

  curl -sS -N URL/mcp -H "$JSON" -H "$BOTH" -H "Mcp-Session-Id: $SESSION" -d '{
    "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "slow",
    "arguments": {"steps": 5}, "_meta": {"progressToken": 1}}}'

And this shows what the proxy counted:

  curl -sS URL/metrics
"""


def run_demo(port: int, once: bool) -> int:
    """Run the demo until Ctrl-C, or `once` through; return the command's exit code.

    Raises:
        click.ClickException: the port is taken.
    """
    sockets = listen(_HOST, port)
    proxy_url = address(_HOST, sockets)
    passed: bool | None = None
    with suppress(KeyboardInterrupt), _sample_server() as sample_url:
        click.echo(f"Shadowcat {__version__}, the demo\n")
        click.echo(f"  MCP client  ->  {proxy_url}/mcp  ->  {sample_url}/mcp")
        click.echo(f"  Python SDK      {'Shadowcat':<{len(proxy_url) + 4}}      a sample MCP server")
        settings = Settings(shutdown_grace=_GRACE)
        app = create_app(MemoryStore(), upstream=f"{sample_url}/mcp", settings=settings)
        server = Server(app)

        async def guide() -> None:
            nonlocal passed
            await server.ready.wait()
            passed = await Tour(f"{proxy_url}/mcp", app.state.shadowcat, sample_url).run()
            if once or not passed:
                server.should_exit = True
            else:
                click.echo(_NEXT.replace("URL", proxy_url))

        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            try:
                runner.run(_serve(server, sockets, guide))
            except* BrokenPipeError:  # nobody reads on, as with `| head`
                passed = False
    return 1 if passed is False else 0


async def _serve(
    server: Server, sockets: list[socket.socket], guide: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Serve until told to stop; the guide ends with it, wherever it is."""
    serving = asyncio.create_task(server.serve(sockets))
    try:
        async with anyio.create_task_group() as tasks:

            async def until_stopping() -> None:
                await server.stopping.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(guide)
            tasks.start_soon(until_stopping)
    finally:
        server.should_exit = True
        await serving


@contextmanager
def _sample_server() -> Iterator[str]:
    """Run the sample server in a process of its own, on a free port; give its address.

    Apart from the terminal's process group: at Ctrl-C the proxy stops first, its upstream after it.
    """
    argv = [sys.executable, "-m", "shadowcat.demo.server", "--port", "0", "--with-stdin"]
    with Popen(argv, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True) as process:  # noqa: S603
        stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        try:
            said = re.search(r"(http://\S+)/mcp", stdout.readline())
            if said is None:
                raise click.ClickException("the sample server did not start")
            yield said[1]
        finally:
            stdin.close()  # which ends it
