"""The sample MCP server: one tool that answers, one that takes its time, one that asks back."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
from mcp.server.mcpserver import Context, Elicit, ElicitationResult, MCPServer, Resolve
from pydantic import BaseModel
from starlette.types import ASGIApp

from shadowcat import __version__
from shadowcat.demo.tally import Arrivals

STEP = 0.3
"""Seconds between two progress notifications of `slow`."""


class Name(BaseModel):
    """What `greet` asks the user for."""

    name: str


async def echo(text: str) -> str:
    """Return the text."""
    return text


async def slow(ctx: Context[Any, Any], steps: int = 3) -> str:
    """Take a while, and report progress after each step."""
    for step in range(1, steps + 1):
        await anyio.sleep(STEP)
        await ctx.report_progress(step, steps, f"step {step} of {steps}")
    return f"done in {steps} steps"


async def ask_for_name() -> Elicit[Name]:
    """Say what is to be asked of the user."""
    return Elicit("What is your name?", Name)


async def greet(answer: Annotated[ElicitationResult[Name], Resolve(ask_for_name)]) -> str:
    """Ask the user's name, then greet them."""
    return f"Hello, {answer.data.name}!" if answer.action == "accept" else f"No name given: {answer.action}."


def sample_app(host: str) -> ASGIApp:
    """Return the server as an ASGI app: MCP at `/mcp`, and what it got at `/requests`.

    Args:
        host: where it will listen. On a loopback address the SDK answers only requests for loopback names.
    """
    server = MCPServer("shadowcat-sample", version=__version__, log_level="ERROR")
    for tool in (echo, slow, greet):
        server.add_tool(tool)
    return Arrivals(server.streamable_http_app(host=host))
