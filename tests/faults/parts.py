"""What faults strike: proxies that are started again whenever they end, and stores in trouble."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread

from tests.faults.ledger import Ledger
from tests.faults.schedule import Schedule
from tests.support.ports import free_port
from tests.support.redis import RedisServer, redis_server
from tests.support.serve_command import Served, serve_command

_STORE_TIMEOUT = 0.5
_LOCK_TIMEOUT = 10.0
_CLEAN = (0,)


class Replica:
    """One proxy. When it ends, it is started again on the same port, until it is told to stay away."""

    def __init__(self, upstream: str, store: str, settings: Mapping[str, Any], logs: list[str]) -> None:
        self.served: Served | None = None
        self.is_up = anyio.Event()
        self.problems: list[str] = []
        self._start = (upstream, store)
        self._settings = settings
        self._logs = logs
        self._port = free_port()
        self._sent: signal.Signals | None = None
        self._stopped = False

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def run(self) -> None:
        """Run it, life after life."""
        while not self._stopped:
            self._sent = None
            async with serve_command(*self._start, "--port", str(self._port), **self._settings) as served:
                self.served = served
                self.is_up.set()
                try:
                    code = await served.command.ends()
                finally:
                    self._logs.append(served.command.output)
            self._is_down()
            self.served = None
            if code not in self._expected():
                self.problems.append(f"a proxy ended with {code}")
            if "Traceback" in served.command.output:
                self.problems.append("a proxy printed a traceback")

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; say whether it was up, and not told to end already."""
        if self.served is None or self._sent in (number, signal.SIGKILL):
            return False
        self._sent = number
        self._is_down()
        self.served.command.send(number)
        return True

    def stop(self) -> None:
        """End it for good."""
        self._stopped = True
        self.send(signal.SIGTERM)

    def _expected(self) -> tuple[int, ...]:
        return (-signal.SIGKILL,) if self._sent == signal.SIGKILL else _CLEAN

    def _is_down(self) -> None:
        if self.is_up.is_set():
            self.is_up = anyio.Event()


class Replicas:
    """All of them, in the order of their numbers."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.all = replicas

    def index(self, number: int) -> int:
        return number % len(self.all)

    def url(self, number: int) -> str:
        return self.all[self.index(number)].base + "/mcp"

    @property
    def problems(self) -> list[str]:
        return [problem for each in self.all for problem in each.problems]


class Store:
    """A store that can be in trouble for a while; one trouble at a time."""

    url: str

    def __init__(self) -> None:
        self._one = anyio.Lock()

    async def trouble(self, kind: str, over: Callable[[], object], ledger: Ledger) -> None:
        """Let it be in trouble until that holds, or for as long as a client would hardly wait."""
        async with self._one:
            await self._begin(kind)
            try:
                with anyio.move_on_after(_STORE_TIMEOUT):
                    await ledger.until(over)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._end(kind)
        ledger.note("the store is back")

    async def _begin(self, kind: str) -> None:
        raise NotImplementedError

    async def _end(self, kind: str) -> None:
        raise NotImplementedError


class SQLite(Store):
    """A file; trouble is somebody else's lock."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.url = f"sqlite:///{path}?busy_timeout={_STORE_TIMEOUT}"
        self._path = path
        self._db: sqlite3.Connection | None = None

    async def _begin(self, kind: str) -> None:
        def lock() -> sqlite3.Connection:
            db = sqlite3.connect(
                self._path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            db.execute("BEGIN IMMEDIATE")
            return db

        self._db = await anyio.to_thread.run_sync(lock)

    async def _end(self, kind: str) -> None:
        assert self._db is not None
        self._db.execute("ROLLBACK")
        self._db.close()


class Redis(Store):
    """A server; it is started again with its data, or hangs."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.url = f"{server.url}?timeout={_STORE_TIMEOUT}"
        self._server = server

    async def _begin(self, kind: str) -> None:
        if kind == "hang_store":
            self._server.pause()
        else:
            await anyio.to_thread.run_sync(self._shut_down)

    def _shut_down(self) -> None:
        with self._server.client() as client:
            try:
                client.shutdown(save=True)
            finally:
                self._server.kill()

    async def _end(self, kind: str) -> None:
        if kind == "hang_store":
            self._server.resume()
        else:
            await anyio.to_thread.run_sync(self._server.start)


@asynccontextmanager
async def store_of(schedule: Schedule) -> AsyncIterator[Store]:
    """Run an empty store of the kind that the schedule names."""
    if schedule.store == "redis":
        with redis_server() as server:
            yield Redis(server)
    else:
        with TemporaryDirectory() as folder:
            yield SQLite(Path(folder, "sessions.db"))


@asynccontextmanager
async def replicas_of(
    schedule: Schedule, upstream: str, store: Store, logs: list[str]
) -> AsyncIterator[Replicas]:
    """Run as many as the schedule names; end them cleanly. What they print is added to `logs`."""
    settings = {
        "record_window": schedule.record_window,
        "session_cache": schedule.session_cache,
        "store_timeout": _STORE_TIMEOUT,
    }
    replicas = Replicas([Replica(upstream, store.url, settings, logs) for _ in range(schedule.replicas)])
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for each in replicas.all:
            tasks.start_soon(each.run)
            await each.is_up.wait()
        yield replicas
        for each in replicas.all:
            await each.is_up.wait()
            each.stop()
