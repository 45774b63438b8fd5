"""Ports for servers that have to be told theirs, or keep it when they start again."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

_FIRST, _END = 10_000, 32_768
"""Below those that systems give to whoever binds or connects without naming one: nobody gets a port of these
while its server is down."""


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    while True:
        port = _FIRST + secrets.randbelow(_END - _FIRST)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
