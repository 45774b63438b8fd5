"""`shadowcat demo`: a sample MCP server, the proxy in front of it, and a client that calls through.

It needs the Python MCP SDK, the optional extra `demo`.
"""

from __future__ import annotations

from importlib.util import find_spec

import click


def require_sdk() -> None:
    """Return where the MCP SDK is installed.

    Raises:
        click.ClickException: it is not; the message names the remedy.
    """
    if find_spec("mcp") is None:
        raise click.ClickException("the demo needs the MCP SDK: pip install 'shadowcat-mcp[demo]'")
