"""What the commands share: a listening socket, uvicorn around an app, and a log that is read by people."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging.config
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

import anyio
import click
import uvicorn
from starlette.applications import Starlette

from shadowcat.connection import ClientConnection
from shadowcat.errors import ShadowcatError
from shadowcat.service import Service

START_FAILED: Final = 3
"""The exit code where the app does not start, which is uvicorn's."""

LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "filters": {"brief": {"()": "shadowcat.serving.BriefFilter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["brief"]}},
    "loggers": {
        "shadowcat": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # Its news of starting and stopping is told in our own words.
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}


class BriefFilter(logging.Filter):
    """Says in one line what servers log with a traceback and is no fault of the code's."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record; shorten it where an upstream broke, the server stops, or a store does not open."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ShadowcatError | asyncio.CancelledError):
            reason = str(error) or "the server stops"
            record.msg, record.args, record.exc_info = "A response was cut: %s", (reason,), None
        elif str(record.msg).startswith("Traceback"):  # of a lifespan that failed, as text
            kind, _, reason = str(record.msg).strip().rpartition("\n")[2].partition(": ")
            if kind.startswith("shadowcat_stores."):
                record.msg, record.args = "The session store: %s", (reason,)
        return True


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of `host`; port 0 picks a free port.

    Raises:
        click.ClickException: the address cannot be listened on; the message names the remedy.
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in found:
            # A name has several addresses; a free port picked for the first is the others' as well.
            at = (address[0], port, *address[2:])
            listeners.append(socket.create_server(at, family=family, backlog=2048))
            port = port or listeners[0].getsockname()[1]
    except OSError as exc:
        for listener in listeners:
            listener.close()
        remedy = (
            "Choose another port with --port; --port 0 picks a free one."
            if exc.errno in (errno.EADDRINUSE, errno.EACCES)
            else "Choose an address of this machine with --host, such as 127.0.0.1, or 0.0.0.0 for all."
        )
        reason = exc.strerror if isinstance(exc, socket.gaierror) else os.strerror(exc.errno or 0)
        raise click.ClickException(f"cannot listen on {host}, port {port}: {reason}. {remedy}") from None
    return listeners


def address(host: str, listeners: list[socket.socket]) -> str:
    """Return the URL at which the listeners on `host` are reached, without a path."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listeners[0].getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn around the proxy: tells when it is ready, and what it still waits for when it stops."""

    def __init__(
        self, app: Starlette, on_ready: Callable[[], None] | None = None, root_path: str = ""
    ) -> None:
        self._service: Service = app.state.shadowcat
        grace = self._service.settings.shutdown_grace
        super().__init__(
            uvicorn.Config(
                app,
                log_config=LOGGING,
                access_log=False,
                lifespan="on",
                http=ClientConnection,
                ws="none",
                root_path=root_path,
                # The upstream's own `server` and `date` pass, so the server adds none.
                server_header=False,
                date_header=False,
                # The app ends by itself what is open after its grace; this is for what it could not end.
                timeout_graceful_shutdown=math.ceil(grace) + 2,
            )
        )
        self.ready = anyio.Event()
        self.stopping = anyio.Event()
        self._on_ready = on_ready
        self._asked = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first begins the end; at the second the app cuts what is open, before this is
        called; the third gives up the end of the lifespan too, which writes what is recorded."""
        self._asked += 1
        if self._asked != 2:
            super().handle_exit(sig, frame)
        # uvicorn would raise it once more at the end. Who was asked to stop and did has not failed.
        self._captured_signals.clear()

    def work(self, sockets: list[socket.socket]) -> int:
        """Serve until told to stop; return the exit code of a command that does just this."""
        with suppress(KeyboardInterrupt):  # uvicorn hands it on after a clean end
            self.run(sockets)
        return 0 if self.started else START_FAILED

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and tell."""
        await super().startup(sockets)
        if self.started:
            # What is there now stays: the collector need not look at it again and again (4 % of a request).
            gc.freeze()
            gc.set_threshold(10_000)
            self.ready.set()
            if self._on_ready is not None:
                self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving; say for what there is a wait."""
        self.stopping.set()
        if open_requests := len(self._service.watches):
            grace = self._service.settings.shutdown_grace
            click.echo(
                f"Stopping. Open requests: {open_requests}, for {grace:g} s. Ctrl-C ends them.", err=True
            )
        await super().shutdown(sockets)
