"""Who waits for a `SQLiteStore`, and for how long: a caller who gives up waits for nothing any more."""

import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from shadowcat_stores import SQLiteStore, StoreUnavailable
from shadowcat_stores._sqlite import worker as worker_module
from shadowcat_stores._sqlite.reads import Reads
from shadowcat_stores._sqlite.writes import Writes
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, new_session, raws


class Disk:
    """Hangs in the middle of what a thread does, when it does it next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.hung = threading.Event()
        self.goes_on = threading.Event()

    def hangs_in(self, owner: type[Reads | Writes], name: str) -> None:
        really = getattr(owner, name)

        def hang(*args: object) -> object:
            if not self.hung.is_set():
                self.hung.set()
                assert self.goes_on.wait(20)
            return really(*args)

        self._patch.setattr(owner, name, hang)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.goes_on.set()


async def give_up(call: Callable[[], Awaitable[object]], disk: Disk | None = None) -> None:
    """Make the call and cancel it: as soon as the thread hangs in it, or has had the time to begin it."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            if disk is not None:
                await anyio.to_thread.run_sync(disk.hung.wait, 5)
            scope.cancel()
    assert scope.cancelled_caught


async def test_who_gives_up_on_a_lock_is_free_at_once_and_nothing_is_done_later(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock, busy_timeout=60.0) as store:
        await store.create_session(new_session(clock))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await give_up(partial(store.create_session, new_session(clock, "late")))
            await give_up(partial(add_raws, store, b"late"))
            assert await store.count_sessions() == 1
            other.execute("ROLLBACK")
        with anyio.fail_after(5):
            assert await add_raws(store, b"1") == [1]
        assert await store.get_session("late") is None
        assert raws(await store.get_frames("session-1")) == [b"1"]


async def test_who_gives_up_on_a_disk_that_hangs_is_free_at_once_and_all_or_nothing_is_done(
    path: Path, disk: Disk
) -> None:
    async with SQLiteStore(path, clock=FakeClock(), busy_timeout=60.0) as store:
        disk.hangs_in(Writes, "create")
        await give_up(partial(store.create_session, new_session(FakeClock())), disk)
        assert not disk.goes_on.is_set()
        # Nor is one held up who comes after it; it is never begun.
        await give_up(partial(store.create_session, new_session(FakeClock(), "late")))
        found: list[bool] = []

        async def look() -> None:
            found.append(await store.get_session("session-1") is not None)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look)
                await anyio.wait_all_tasks_blocked()
                await store._running().reader.submit(lambda on: None)
                # Who asks now is not told of a state that is about to pass.
                assert found == []
                disk.goes_on.set()
        assert found == [True]
        assert await store.get_session("late") is None
        assert await store.count_sessions() == 1


async def test_who_reads_waits_for_a_disk_that_hangs_no_longer_than_for_a_lock(
    path: Path, disk: Disk
) -> None:
    async with SQLiteStore(path, clock=FakeClock(), busy_timeout=0.05) as store:
        disk.hangs_in(Writes, "create")
        await give_up(partial(store.create_session, new_session(FakeClock())), disk)
        with anyio.fail_after(5):
            for _ in range(2):
                assert await store.get_session("session-1") is None
                assert await store.get_frames("session-1") == []
        disk.goes_on.set()
        await store.ping()
        assert await store.get_session("session-1") is not None


async def test_who_gives_up_a_read_is_free_at_once(path: Path, disk: Disk) -> None:
    async with SQLiteStore(path, clock=FakeClock(), busy_timeout=60.0) as store:
        disk.hangs_in(Reads, "session")
        await give_up(partial(store.get_session, "session-1"), disk)
        await give_up(partial(store.get_session, "session-1"))
        assert not disk.goes_on.is_set()
        disk.goes_on.set()
        assert await store.get_session("session-1") is None


async def test_who_gives_up_opening_is_free_at_once_and_can_open_it_later(path: Path) -> None:
    async with SQLiteStore(path):
        pass
    before = threading.enumerate()
    store = SQLiteStore(path, busy_timeout=60.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        await give_up(store.open)
        assert store.is_open is False
        left = [each for each in threading.enumerate() if each not in before]
    for each in left:
        each.join(5)
    assert threading.enumerate() == before
    async with store:
        await store.ping()


async def test_who_closes_waits_for_a_disk_that_hangs_but_not_for_ever(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_HANGS_AFTER", 0.05)
    before = threading.enumerate()
    store = SQLiteStore(path, clock=FakeClock(), busy_timeout=0.0)
    await store.open()
    disk.hangs_in(Writes, "create")
    await give_up(partial(store.create_session, new_session(FakeClock())), disk)
    with anyio.fail_after(5):
        await store.aclose()
    assert [each.message for each in caplog.records] == [
        f"{path}: its disk hangs: closed without waiting for it"
    ]
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get_session("session-1")
    left = [each for each in threading.enumerate() if each not in before and "shadowcat" in each.name]
    disk.goes_on.set()
    for each in left:
        each.join(5)
    async with store:
        assert await store.get_session("session-1") is not None
