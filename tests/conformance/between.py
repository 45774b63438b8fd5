"""Puts the proxy between a client and the server that the conformance suite plays to it.

    python -m tests.conformance.between COMMAND... URL

Runs the command with the proxy's URL for the server's. Where authorization is played, the proxy has the
server's own address instead, as where a name leads to it that led to the server before: the suite's server,
like any that checks whom a token is for, wants tokens for the address that it knows itself by.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import anyio
import httpx2
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowcat import Settings, create_app
from shadowcat_stores import MemoryStore
from tests.support.serving import serve

AUTH = "auth/"
"""What the names of the scenarios begin with in which the proxy has the server's own address."""


class TakesOver:
    """The HTTP proxy of a client's: what is for one address goes to an app, the rest where it is to go."""

    def __init__(self, app: ASGIApp, address: str) -> None:
        self._app = app
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (request := Request(scope, receive)).headers["host"] == self._address:
            await self._app(scope, receive, send)
            return
        async with httpx2.AsyncClient(trust_env=False) as client:
            url = request.url.replace(scheme="http", netloc=request.headers["host"])
            came = await client.request(
                request.method, str(url), headers=request.headers.raw, content=await request.body()
            )
        response = Response(came.content, came.status_code)
        response.raw_headers = [pair for pair in came.headers.raw if pair[0].lower() != b"transfer-encoding"]
        await response(scope, receive, send)


async def main(argv: Sequence[str]) -> int:
    """Return the command's exit code."""
    *command, url = argv
    has_its_address = os.environ.get("MCP_CONFORMANCE_SCENARIO", "").startswith(AUTH)
    settings = Settings(
        auth_endpoints=True,
        # Where the newest release's authorization server has its endpoints, in the scenario of 2025-03-26.
        auth_paths=("/oauth/authorize", "/oauth/token", "/oauth/register"),
        auth_resource="upstream" if has_its_address else "proxy",
    )
    app = create_app(MemoryStore(), upstream=url, settings=settings)
    async with serve(TakesOver(app, urlsplit(url).netloc) if has_its_address else app) as base:
        environment = dict(os.environ)
        if has_its_address:
            environment |= {"HTTP_PROXY": base, "NO_PROXY": ""}
        else:
            url = base.replace("127.0.0.1", "localhost") + "/mcp"
        done = await anyio.run_process(
            [*command, url], check=False, stdout=None, stderr=None, env=environment
        )
    assert app.state.shadowcat.counters.client_requests, "the client went past the proxy"
    return done.returncode


if __name__ == "__main__":
    sys.exit(anyio.run(main, sys.argv[1:]))
