"""A real uvicorn on a free port, in the test's own loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn


@asynccontextmanager
async def serve(app: Any, *, send_buffer: int | None = None, **options: Any) -> AsyncIterator[str]:
    """Serve the app on loopback; yield its base URL. The server's own headers are off, so none is added.

    `Server.serve` would take over the process's signals, and notice only every 0.1 s that it shall stop: so
    its two halves are called.
    """
    defaults: dict[str, Any] = {"log_level": "critical", "server_header": False, "date_header": False}
    config = uvicorn.Config(app, timeout_graceful_shutdown=2, **(defaults | options))
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        try:
            assert server.started, "the app's lifespan failed"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(10):
                await server.shutdown(sockets=[listener])
