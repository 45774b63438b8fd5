"""The sample MCP server by itself: `python -m shadowcat.demo.server --host 127.0.0.1 --port 3001`."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

import click
import uvicorn

from shadowcat.demo import require_sdk
from shadowcat.serving import LOGGING, address, listen


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=3001,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--with-stdin", is_flag=True, hidden=True, help="End when standard input does.")
def main(host: str, port: int, with_stdin: bool) -> None:
    """Run a sample MCP server with the tools echo, slow and greet."""
    require_sdk()
    from shadowcat.demo.sample import sample_app

    sockets = listen(host, port)
    config = uvicorn.Config(
        sample_app(host), log_config=LOGGING, access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    if with_stdin:
        threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
    click.echo(f"Sample MCP server on {address(host, sockets)}/mcp. Ctrl-C stops.")
    with suppress(KeyboardInterrupt):
        server.run(sockets)


def _end_with_stdin(server: uvicorn.Server) -> None:
    """Whoever started this holds the other end: however that process ends, this one ends as well."""
    sys.stdin.buffer.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
