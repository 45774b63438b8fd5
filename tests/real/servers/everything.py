"""A sample MCP server on the Python SDK: one tool for each thing that a proxy can get wrong.

    python everything.py [--json] [--stateless] [--http-sse] [--port PORT]

It takes the port, or a free one, and says which in its first line. With `--http-sse` it speaks the transport
of 2024-11-05, mounted in another app, at `/deep/sse`. Beside that, or `/mcp`, it has a side channel, which
tests use directly, never through the proxy:

    POST /_signals/NAME    give the signal NAME: whoever waits for it goes on
    GET  /_signals/NAME    answer once the signal NAME was given, by a tool or by a test
    POST /_notes/NAME      change the resource note://NAME to the body and tell its subscribers
    GET  /_requests/ID     the verbs of the MCP requests that had the header `x-test-client: ID`, in order
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections import defaultdict
from typing import Annotated, Any, ClassVar

import anyio
import uvicorn
from mcp import ServerSession
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, Elicit, ElicitationResult, MCPServer, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated
from mcp.types import (
    CreateMessageResult,
    EmptyResult,
    SamplingMessage,
    SubscribeRequestParams,
    TextContent,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

CLIENT_HEADER = b"x-test-client"

bus = InMemorySubscriptionBus()
server = MCPServer("shadowcat-sample", version="1.0", log_level="WARNING", subscriptions=bus)
signals: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
notes: defaultdict[str, str] = defaultdict(lambda: "(empty)")
subscribers: defaultdict[str, set[ServerSession]] = defaultdict(set)


# -- tools ----------------------------------------------------------------------------------------------


@server.tool()
async def echo(text: str) -> str:
    """Return the text."""
    return text


@server.tool()
async def repeat(text: str, times: int) -> str:
    """Return the text many times: a message much larger than any buffer on its way."""
    return text * times


@server.tool()
async def fail(reason: str) -> str:
    """Raise an error that is the tool's, not the protocol's."""
    raise ToolError(reason)


@server.tool()
async def count(to: int, gate: str, ctx: Context[Any, Any]) -> str:
    """Report progress from 1 to `to`; after step K wait for the signal `GATE:K`.

    A client that gives each signal only when it has seen the step cannot get the result from a path that
    holds progress back.
    """
    for step in range(1, to + 1):
        await ctx.report_progress(step, to, f"step {step} of {to}")
        await signals[f"{gate}:{step}"].wait()
    return f"counted to {to}"


@server.tool()
async def block(key: str, ctx: Context[Any, Any]) -> str:
    """Report progress, give the signal `KEY:started`, then work until cancelled, and give `KEY:cancelled`."""
    await ctx.report_progress(1)
    signals[f"{key}:started"].set()
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        signals[f"{key}:cancelled"].set()
        raise
    return "never"


class Name(BaseModel):
    """What `greet` asks the user for."""

    name: str


async def ask_for_name() -> Elicit[Name]:
    return Elicit("What is your name?", Name)


@server.tool()
async def greet(answer: Annotated[ElicitationResult[Name], Resolve(ask_for_name)]) -> str:
    """Elicit the user's name: mid-call up to 2025-11-25, by an input-required result from 2026-07-28."""
    return f"Hello, {answer.data.name}!" if answer.action == "accept" else f"No name: {answer.action}"


async def ask_the_model(question: str) -> Sample:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=question))
    return Sample([message], max_tokens=50)


@server.tool()
async def ponder(question: str, reply: Annotated[CreateMessageResult, Resolve(ask_the_model)]) -> str:
    """Ask the client's model."""
    text = reply.content.text if isinstance(reply.content, TextContent) else "(no text)"
    return f"{question} {text}"


@server.tool()
async def roots(ctx: Context[Any, Any]) -> list[str]:
    """List the client's roots. The request travels on the standalone GET stream (session revisions only)."""
    found = await ctx.session.list_roots()
    return [str(root.uri) for root in found.roots]


# -- resources ------------------------------------------------------------------------------------------


@server.resource("sample://about", mime_type="text/plain")
async def about() -> str:
    return "A sample server."


@server.resource("note://{name}", mime_type="text/plain")
async def note(name: str) -> str:
    return notes[name]


async def subscribe(ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> EmptyResult:
    subscribers[str(params.uri)].add(ctx.session)
    return EmptyResult()


async def unsubscribe(ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
    subscribers[str(params.uri)].clear()
    return EmptyResult()


# `MCPServer` serves `subscriptions/listen` (2026-07-28) itself; the older methods are the low-level server's.
server._lowlevel_server.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
server._lowlevel_server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)


# -- the side channel -----------------------------------------------------------------------------------


async def signal(request: Request) -> Response:
    given = signals[request.path_params["name"]]
    if request.method == "POST":
        given.set()
    await given.wait()
    return Response(status_code=204)


async def change_note(request: Request) -> Response:
    name = request.path_params["name"]
    notes[name] = (await request.body()).decode()
    uri = f"note://{name}"
    await bus.publish(ResourceUpdated(uri=uri))
    for session in subscribers[uri]:
        await session.send_resource_updated(uri)
    return Response(status_code=204)


async def requests(request: Request) -> Response:
    return JSONResponse(RequestLog.seen[request.path_params["client"]])


SIDE_CHANNEL = [
    Route("/_signals/{name}", signal, methods=["GET", "POST"]),
    Route("/_notes/{name}", change_note, methods=["POST"]),
    Route("/_requests/{client}", requests),
]


class RequestLog:
    """ASGI middleware: remembers the verb of each request that says which test's client it is from."""

    seen: ClassVar[defaultdict[str, list[str]]] = defaultdict(list)

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == CLIENT_HEADER:
                    self.seen[value.decode()].append(scope["method"])
        await self.app(scope, receive, send)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="answer with a JSON body instead of an SSE stream"
    )
    parser.add_argument("--stateless", action="store_true", help="keep no sessions")
    parser.add_argument("--http-sse", action="store_true", help="speak HTTP+SSE (2024-11-05)")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    app = server.streamable_http_app(json_response=options.json, stateless_http=options.stateless)
    if options.http_sse:
        app = Starlette(routes=[Mount("/deep", server.sse_app())])
    app.router.routes.extend(SIDE_CHANNEL)
    config = uvicorn.Config(RequestLog(app), log_level="warning", timeout_graceful_shutdown=1)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=128)
    sys.stdout.write(f"listening on port {listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
