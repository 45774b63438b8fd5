"""A proxy as it is usually written, with Starlette and an httpx client: the column to be better than."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

LIBRARIES = ("httpx2", "httpx")


def create_app(upstream: str, library: str = "httpx2") -> Starlette:
    httpx: Any = importlib.import_module(library)
    client = httpx.AsyncClient(timeout=None)

    async def proxy(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        content = await request.body()
        sent = client.build_request(request.method, upstream, headers=headers, content=content)
        response = await client.send(sent, stream=True)
        return StreamingResponse(
            response.aiter_raw(),
            status_code=response.status_code,
            headers=response.headers,
            background=BackgroundTask(response.aclose),
        )

    return Starlette(routes=[Route("/mcp", proxy, methods=["GET", "POST", "DELETE"])])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--library", choices=LIBRARIES, default="httpx2")
    given = parser.parse_args()
    app = create_app(given.upstream, given.library)
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
