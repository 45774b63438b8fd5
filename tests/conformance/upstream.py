"""One of the Python SDK's example servers, on a port of its own.

python -m tests.conformance.upstream PORT everything
python -m tests.conformance.upstream PORT story NAME MODULE
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn


def app_of(what: str, *names: str) -> Any:
    """Return the ASGI app."""
    if what == "everything":
        everything = importlib.import_module("mcp_everything_server.server")
        # As its own command runs it.
        return everything.mcp.streamable_http_app(event_store=everything.event_store, retry_interval=100)
    name, module = names
    server = importlib.import_module(f"stories.{name}.{module}")
    if hasattr(server, "build_app"):
        return server.build_app()
    return importlib.import_module("stories._hosting").asgi_from(server.build_server())


def main(argv: Sequence[str]) -> None:
    """Serve until told to stop."""
    port, *what = argv
    # h11, since httptools leaves the blanks after a header's value, which the suite minds.
    config = uvicorn.Config(app_of(*what), http="h11", log_level="warning", timeout_graceful_shutdown=1)
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        print(f"listening on port {listener.getsockname()[1]}", flush=True)
        asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main(sys.argv[1:])
