"""How long `shadowcat serve` takes until it is ready."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from dataclasses import replace

from .bench import Bench
from .processes import free_port
from .stacks import Stack

EVERY = 0.003
LIMIT = 20.0


def seconds_to_ready(bench: Bench, stack: Stack, count: int) -> list[float]:
    """From the start of the process to the first 200 of `/readyz`, one start after the other."""
    return [_start(bench, replace(stack, name=f"{stack.name}-start-{number}")) for number in range(count)]


def _start(bench: Bench, stack: Stack) -> float:
    directory = bench.children.directory / stack.name
    directory.mkdir()
    port = free_port()
    assert stack.command
    command = stack.command(f"http://127.0.0.1:{bench.stub_port}/mcp", port, directory)
    began = time.monotonic()
    process = bench.children.start(stack.name, command, bench.cores.proxy)
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - began > LIMIT:
                log = bench.children.log(stack.name).read_text(errors="replace")
                raise RuntimeError(f"{stack.label} did not become ready:\n{log[-2000:]}")
            time.sleep(EVERY)  # noqa: TID251 - no event loop runs here
        return time.monotonic() - began
    finally:
        bench.children.stop(process.pid)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as asked:
        asked.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return asked.recv(64).startswith(b"HTTP/1.1 200 ")
    return False


def bare_python(bench: Bench, count: int) -> list[float]:
    """The same for a Python that does nothing: what no program in it can be faster than."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        bench.children.run([sys.executable, "-c", "pass"], bench.cores.proxy, LIMIT)
        found.append(time.monotonic() - began)
    return found
