"""The threads of a `SQLiteStore`: one writes, one reads records, one reads tapes and looks for new frames."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from shadowcat_stores._sqlite.file import Database, is_busy
from shadowcat_stores._sqlite.place import Place
from shadowcat_stores._sqlite.reads import Reads
from shadowcat_stores._sqlite.tails import Tails
from shadowcat_stores._sqlite.tidy import shrink, truncate
from shadowcat_stores._sqlite.worker import Job, Worker
from shadowcat_stores._sqlite.writes import Writes
from shadowcat_stores.base import Clock
from shadowcat_stores.errors import StoreUnavailable, StoreUnusable
from shadowcat_stores.records import StoreLimits

T = TypeVar("T")

_LOCK_RETRY: Final = 0.002
"""Seconds between two tries for a lock. SQLite's own waiting grows to 100 ms, and then misses its turns."""

_DELIVER_AFTER: Final = 0.001
"""Seconds of reading after which answers are worth an interruption of the event loop of their own."""

_TIDY_EVERY: Final = 2.0
"""Seconds between two looks for what has expired."""

_LOOK_AGAIN: Final = 0.2
"""Seconds between two looks for a file that is missing."""

_TIDY_STEP: Final = 100
"""Sessions, rows and pages that one step of tidying takes, so that others get in between."""


class Reader(Worker[Reads]):
    """Runs each read by itself, beside the writer."""

    def __init__(self, name: str, database: Database, place: Place, clock: Clock) -> None:
        super().__init__(name, database, self._open)
        self._place = place
        self._clock = clock

    def _open(self) -> Reads:
        file = self._place.require()
        return Reads(self._database.connect_reader(), self._clock, file)

    def _connected(self) -> Reads:
        if self._on is not None and (self._place.is_lost or self._on.file is not self._place.file):
            self._disconnect()
        return super()._connected()

    def _handle(self, jobs: list[Job[Reads]]) -> None:
        done: list[Job[Reads]] = []
        begun = time.monotonic()
        for job in jobs:
            if job.future.cancelled():
                continue
            try:
                job.run(self._connected())
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is the answer
                job.error = self._explain(exc)
            done.append(job)
            if time.monotonic() - begun > _DELIVER_AFTER:
                self._deliver(done)
                done = []
                begun = time.monotonic()
        self._deliver(done)


class TapeReader(Reader):
    """Reads tapes, which may take longer, and looks for those who follow one."""

    def __init__(self, name: str, database: Database, place: Place, clock: Clock, tails: Tails) -> None:
        super().__init__(name, database, place, clock)
        self._tails = tails

    def _interval(self) -> float | None:
        return self._tails.interval()

    def _tick(self) -> None:
        changed = self._tails.look(self._connected())
        if changed:
            self._call(self._tails.wake, changed)


class Writer(Worker[Writes]):
    """Runs the writes that wait in one transaction, and in between clears away what has expired."""

    def __init__(
        self, name: str, database: Database, place: Place, clock: Clock, limits: StoreLimits, tails: Tails
    ) -> None:
        super().__init__(name, database, self._open)
        self._place = place
        self._clock = clock
        self._limits = limits
        self._tails = tails
        self._more_to_tidy = True
        self._has_shrunk = False

    def _open(self) -> Writes:
        is_first = self._place.file is None
        expected, make = self._place.expect()
        try:
            db = self._database.connect_writer(make=make)
        except StoreUnusable as exc:
            if is_first:
                raise
            # Whoever mends it need not start again.
            raise StoreUnavailable(str(exc)) from exc
        try:
            self._place.take(expected)
        except StoreUnavailable:
            db.close()
            raise
        return Writes(db, self._clock, self._limits)

    def _connected(self) -> Writes:
        if self._on is not None and not self._place.is_held():
            self._call(self._tails.wake_all)
            self._place.give_up(self._on.db)
            self._disconnect()
        return super()._connected()

    # -- jobs ---------------------------------------------------------------------------------------

    def _handle(self, jobs: list[Job[Writes]]) -> None:
        if not self._run(jobs):
            for job in jobs:
                self._run([job])

    def _run(self, jobs: list[Job[Writes]]) -> bool:
        """Run the jobs in one transaction and deliver them; say no where each has to be run by itself."""
        try:
            on = self._begin(self._database.patience)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the answer
            # To those who came meanwhile, too: one after the other they would wait longer and longer.
            jobs = jobs + self._take_waiting()
            for job in jobs:
                job.error = self._explain(exc)
            self._deliver(jobs)
            return True
        try:
            for job in jobs:
                if job.begin():
                    job.run(on)
            on.db.execute("COMMIT")
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the answer
            self._roll_back(on)
            error = self._explain(exc)
            if len(jobs) > 1:
                return False
            jobs[0].error = error
        self._deliver(jobs)
        self._publish(on)
        return True

    def _take_waiting(self) -> list[Job[Writes]]:
        jobs = []
        with suppress(queue.Empty):
            while (job := self._queue.get_nowait()) is not None:
                jobs.append(job)
            self._ending = True
        return jobs

    # -- transactions -------------------------------------------------------------------------------

    def _begin(self, patience: float) -> Writes:
        on = self._connected()
        deadline = time.monotonic() + patience
        while True:
            try:
                on.db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as exc:
                if not is_busy(exc) or time.monotonic() >= deadline:
                    raise
            else:
                return on
            time.sleep(_LOCK_RETRY)  # noqa: TID251 - in a thread of its own

    def _roll_back(self, on: Writes) -> None:
        on.changed.clear()
        on.has_graves = True
        if on.db.in_transaction:
            try:
                on.db.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()

    def _publish(self, on: Writes) -> None:
        """Tell those who follow what has changed."""
        self._more_to_tidy = self._more_to_tidy or on.has_graves
        changed, on.changed = on.changed, set()
        # Whoever begins to follow after this reads what was committed before it.
        if self._tails.is_followed(changed):
            self._call(self._tails.wake, changed)

    # -- tidying ------------------------------------------------------------------------------------

    def _interval(self) -> float | None:
        if self._place.is_lost:
            return _LOOK_AGAIN
        return 0.0 if self._more_to_tidy else _TIDY_EVERY

    def _tick(self) -> None:
        # Whatever hinders it, it is tried again with the next look at the latest.
        self._more_to_tidy = False
        try:
            on = self._begin(0.0)
        except sqlite3.OperationalError as exc:
            if is_busy(exc):
                return
            raise
        try:
            more = on.tidy(_TIDY_STEP)
            shrunk = shrink(on.db, _TIDY_STEP)
            on.db.execute("COMMIT")
        except BaseException:
            self._roll_back(on)
            raise
        self._publish(on)
        self._more_to_tidy = more or shrunk
        self._has_shrunk = self._has_shrunk or shrunk
        if self._has_shrunk and not self._more_to_tidy:
            self._has_shrunk = not truncate(on.db)


class Threads:
    """The threads of an open store, and who follows frames in it."""

    def __init__(self, database: Database, clock: Clock, limits: StoreLimits) -> None:
        self.tails = Tails(clock)
        place = Place(database.path)
        self.writer = Writer("writer", database, place, clock, limits, self.tails)
        self.reader = Reader("reader", database, place, clock)
        self.tapes = TapeReader("tapes", database, place, clock, self.tails)
        # The writer first, who makes the file; and last, who then tidies it up.
        self._all: list[Worker[Writes] | Worker[Reads]] = [self.writer, self.reader, self.tapes]
        self._started: list[Worker[Writes] | Worker[Reads]] = []

    async def start(self) -> None:
        try:
            for each in self._all:
                self._started.append(each)
                await each.start()
        except asyncio.CancelledError:
            # The threads end by themselves, however long the file may be locked.
            self.end_soon()
            raise
        except BaseException:
            await self.stop()
            raise

    async def read(self, work: Callable[[Reads], T]) -> T:
        """Return what the work returns, which is to read sessions."""
        return await self._read(self.reader, work)

    async def read_tape(self, work: Callable[[Reads], T]) -> T:
        """Return what the work returns, which may take longer."""
        return await self._read(self.tapes, work)

    async def _read(self, reader: Reader, work: Callable[[Reads], T]) -> T:
        if self.writer.left:
            await self.writer.settle()
        return await reader.submit(work)

    async def stop(self) -> None:
        self.tails.wake_all()
        try:
            for each in reversed(self._started):
                await each.stop()
        finally:
            self.end_soon()

    def end_soon(self) -> None:
        for each in reversed(self._started):
            each.end_soon()
