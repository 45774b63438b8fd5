"""A thread with a connection: what a `SQLiteStore` has each of its kinds of work done by."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio
import msgspec

from shadowcat_stores._sqlite.file import Database, damaged, is_spoiling, unavailable
from shadowcat_stores.errors import StoreError, StoreUnavailable

logger = logging.getLogger("shadowcat.stores.sqlite")

NOT_OPEN: Final = "the store is not open: enter it with `async with store:` or await open()"

_MOST_AT_ONCE: Final = 128
"""Jobs that are run, and answered, together."""


_HANGS_AFTER: Final = 10.0
"""Seconds without any progress after which whoever closes the store waits no longer."""


class Connected(Protocol):
    """What a job works on."""

    db: sqlite3.Connection


T = TypeVar("T")
On = TypeVar("On", bound=Connected)


class Job(Generic[On]):
    """Something to do, and who waits for it."""

    __slots__ = ("answer", "begun", "delivered", "error", "future", "settled", "work")

    def __init__(self, work: Callable[[On], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.answer: Any = None
        self.error: Exception | None = None
        self.begun = False
        self.delivered = False
        self.settled: asyncio.Event | None = None

    def begin(self) -> bool:
        """Return whether it is to be done, which it is not where its caller was cancelled before.

        In this order: either a cancelled caller sees that it has begun, or this sees that he was cancelled.
        """
        self.begun = True
        return not self.future.cancelled()

    def run(self, on: On) -> None:
        """Do it. What the store's contract says of it is an answer; anything else is raised."""
        self.error = None
        try:
            self.answer = self.work(on)
        except StoreError as exc:
            self.error = exc

    def deliver(self) -> None:
        """Answer whoever waits, in the event loop."""
        self.delivered = True
        if self.settled is not None:
            self.settled.set()
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.answer)
        else:
            self.future.set_exception(self.error)


class Worker(Generic[On]):
    """A thread with a connection: runs jobs in the order they were submitted, as many at a time as there are.

    The connection is made when it is needed, and anew after an error that spoiled it, so a worker goes on
    as soon as the file can be used again.
    """

    def __init__(self, name: str, database: Database, connect: Callable[[], On]) -> None:
        self._database = database
        self._connect = connect
        self._on: On | None = None
        self._queue: queue.SimpleQueue[Job[On] | None] = queue.SimpleQueue()
        # A daemon: a store that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=f"shadowcat-{name}", daemon=True)
        self._stopped = False
        self._ending = False
        self._handled = 0
        self.left: list[asyncio.Event] = []
        """Of what is being done though its caller was cancelled, or was a moment ago."""
        self._is_behind = False
        self._last_tick = time.monotonic()

    # -- in the event loop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the thread and connect.

        Raises:
            StoreUnavailable: the file cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._thread.start()
        await self.submit(lambda on: None)

    async def submit(self, work: Callable[[On], T]) -> T:
        """Return what the work returns, run in the thread.

        A caller who is cancelled waits for nothing. What has not begun by then is not done at all; what has
        is done whole or not at all, and `settle` returns when that is so.
        """
        if self._stopped:
            raise StoreUnavailable(NOT_OPEN)
        job: Job[On] = Job(work, self._loop.create_future())
        self._queue.put(job)
        try:
            answer: T = await job.future
        except asyncio.CancelledError:
            if job.begun and not job.delivered:
                job.settled = asyncio.Event()
                self.left.append(job.settled)
                self._loop.call_later(self._database.patience, job.settled.set)
            raise
        return answer

    async def settle(self) -> None:
        """Return when that has been done whose callers did not wait for it, so that nobody finds it undone.

        No later than a lock may last: if the disk hangs, others need not wait for it, too.
        """
        for each in self.left.copy():
            await each.wait()
        self.left = [each for each in self.left if not each.is_set()]

    def end_soon(self) -> None:
        """Let the thread end when it has done what was submitted. Needs no event loop."""
        self._stopped = True
        self._queue.put(None)

    async def stop(self) -> None:
        """Return when what was submitted is done, the connection closed and the thread gone; or hangs."""
        # The loop of the start may be gone by now, with all who waited in it.
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.end_soon()
        while not self._ended.is_set():
            handled = self._handled
            with anyio.move_on_after(self._database.patience + _HANGS_AFTER):
                await self._ended.wait()
            if handled == self._handled and not self._ended.is_set():
                logger.error("%s: its disk hangs: closed without waiting for it", self._database.path)
                return
        # To say so was the thread's last step: this waits for microseconds.
        self._thread.join()

    # -- in the thread ------------------------------------------------------------------------------

    def _handle(self, jobs: list[Job[On]]) -> None:
        """Run the jobs and deliver them."""
        raise NotImplementedError

    def _interval(self) -> float | None:
        """Return the seconds from one tick to the next; `None` while there is nothing to look after."""
        return None

    def _tick(self) -> None:
        """Look after what no job asks for."""

    def _main(self) -> None:
        while True:
            jobs = self._take()
            if jobs:
                self._handle(jobs)
                self._handled += 1
            if self._ending:
                break
            if self._wait() == 0.0:
                self._tick_safely()
        self._disconnect()
        self._call(self._ended.set)

    def _take(self) -> list[Job[On]]:
        """Return the jobs that wait, or the first one to come before the next tick."""
        jobs: list[Job[On]] = []
        with suppress(queue.Empty):
            job = self._queue.get(timeout=self._wait())
            while job is not None:
                jobs.append(job)
                if len(jobs) == _MOST_AT_ONCE:
                    return jobs
                job = self._queue.get_nowait()
            self._ending = True
        return jobs

    def _wait(self) -> float | None:
        interval = self._interval()
        return None if interval is None else max(0.0, self._last_tick + interval - time.monotonic())

    def _tick_safely(self) -> None:
        try:
            self._tick()
            self._is_behind = False
        except Exception as exc:  # noqa: BLE001 - nobody waits for it, and the thread has to go on
            error = self._explain(exc)
            if not self._is_behind:
                logger.warning("the store's upkeep has to wait: %s", error)
            self._is_behind = True
        self._last_tick = time.monotonic()

    def _connected(self) -> On:
        if self._on is None:
            self._on = self._connect()
        return self._on

    def _disconnect(self) -> None:
        if self._on is not None:
            with suppress(sqlite3.Error):
                self._on.db.close()
            self._on = None

    def _explain(self, error: Exception) -> Exception:
        """Return what to raise for the error; drop the connection where it may be to blame."""
        if isinstance(error, sqlite3.Error):
            if is_spoiling(error):
                self._disconnect()
            return unavailable(error, self._database.path)
        if isinstance(error, msgspec.DecodeError):
            return damaged(error, self._database.path)
        if isinstance(error, OverflowError):
            return ValueError(f"{error}: a store keeps numbers of 64 bits")
        return error

    def _deliver(self, jobs: Iterable[Job[On]]) -> None:
        self._call(_deliver_all, jobs)

    def _call(self, callback: Callable[..., object], *args: object) -> None:
        # A loop that is closed has nobody left in it who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)


def _deliver_all(jobs: Iterable[Job[Any]]) -> None:
    for job in jobs:
        job.deliver()
