"""The file of a `SQLiteStore` is deleted, moved or replaced while in use: noticed, said, and got over."""

import logging
import os
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from shadowcat_stores import Session, SQLiteStore, StoreUnavailable, StoreUnusable
from shadowcat_stores._sqlite import place as place_module
from shadowcat_stores._sqlite import threads as threads_module
from shadowcat_stores._sqlite.tails import Tails
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, list_all, new_frame, new_session, raws

_GONE = "was deleted, moved away or replaced while it was in use: put it back, or wait for .* what was in it"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a missing file, and look for one of one's own accord, for as long as a test takes."""
    monkeypatch.setattr(place_module, "_PUT_BACK_WITHIN", 3600.0)
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 3600.0)
    monkeypatch.setattr(threads_module, "_LOOK_AGAIN", 3600.0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, for_ever: None) -> Callable[[], None]:
    """Stop waiting for a missing file."""
    return lambda: monkeypatch.setattr(place_module, "_PUT_BACK_WITHIN", 0.0)


@pytest.fixture
async def store(path: Path, clock: FakeClock) -> AsyncIterator[SQLiteStore]:
    async with SQLiteStore(path, clock=clock) as store:
        yield store


@pytest.fixture
async def stored(store: SQLiteStore, clock: FakeClock) -> Session:
    stored = await store.create_session(new_session(clock))
    await add_raws(store, b"1")
    return stored


def beside(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}{each}") for each in ("-wal", "-shm")]


async def refuse(*calls: Callable[[], Awaitable[object]]) -> None:
    for call in calls:
        with pytest.raises(StoreUnavailable, match=_GONE) as raised:
            await call()
        assert raised.type is StoreUnavailable


# -- deleted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_those_beside", [True, False])
async def test_a_deleted_file_is_missed_by_the_next_write_and_then_by_all(
    store: SQLiteStore, path: Path, stored: Session, with_those_beside: bool
) -> None:
    for each in (path, *(beside(path) if with_those_beside else [])):
        each.unlink()
    await refuse(
        partial(store.add_frame, new_frame()),
        partial(store.get_session, "session-1"),
        partial(store.get_frames, "session-1"),
        store.ping,
    )
    # Somebody may be about to put it back.
    assert not path.exists()


async def test_a_deleted_file_is_made_anew_and_said_to_have_been(
    store: SQLiteStore,
    path: Path,
    clock: FakeClock,
    stored: Session,
    at_once: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path.unlink()
    await refuse(store.ping)
    at_once()
    await store.ping()
    assert await store.get_session("session-1") is None
    assert await list_all(store) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await store.create_session(new_session(clock))
    assert await add_raws(store, b"other") == [1]
    assert [(each.levelno, each.message) for each in caplog.records] == [
        (logging.ERROR, f"{path} was missing and is made anew: all sessions and tapes are gone")
    ]
    async with SQLiteStore(path, clock=clock) as other:
        assert raws(await other.get_frames("session-1")) == [b"other"]


async def test_a_deleted_file_is_missed_though_nobody_writes(
    store: SQLiteStore, path: Path, stored: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 0.0)
    monkeypatch.setattr(threads_module, "_LOOK_AGAIN", 0.0)
    await store.ping()
    path.unlink()
    with anyio.fail_after(5):
        while True:
            try:
                await store.get_session("session-1")
            except StoreUnavailable:
                break
        monkeypatch.setattr(place_module, "_PUT_BACK_WITHIN", 0.0)
        while not path.exists():
            await anyio.lowlevel.checkpoint()


async def test_a_directory_that_is_deleted_and_made_again(
    tmp_path: Path, clock: FakeClock, at_once: Callable[[], None]
) -> None:
    (tmp_path / "data").mkdir()
    at_once()
    async with SQLiteStore(tmp_path / "data" / "sessions.db", clock=clock) as store:
        shutil.rmtree(tmp_path / "data")
        with pytest.raises(StoreUnavailable, match=r"cannot be made .* make its directory") as raised:
            await store.ping()
        assert raised.type is not StoreUnusable
        (tmp_path / "data").mkdir()
        await store.ping()
        await store.create_session(new_session(clock))


async def test_two_stores_get_over_it_together(
    store: SQLiteStore, path: Path, clock: FakeClock, stored: Session, at_once: Callable[[], None]
) -> None:
    async with SQLiteStore(path, clock=clock) as other:
        assert await other.get_session("session-1") == stored
        path.unlink()
        at_once()
        await store.create_session(new_session(clock, "new"))
        # The other one finds what the first has made, and what SQLite has put beside that.
        await other.touch_session("new", 4e9)
        assert [each.id for each in await list_all(other)] == ["new"]
        await add_raws(other, b"1", session_id="new")
        assert raws(await store.get_frames("new")) == [b"1"]
    await store.ping()


# -- moved ------------------------------------------------------------------------------------------


async def test_a_file_that_is_put_back_goes_on_as_if_nothing_had_been(
    store: SQLiteStore, path: Path, clock: FakeClock, stored: Session, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteStore(path, clock=clock) as other:
        path.rename(path.with_name("away.db"))
        await refuse(store.ping)
        path.with_name("away.db").rename(path)
        assert await add_raws(store, b"2") == [2]
        # This one has not noticed, and they still share one log.
        assert await add_raws(other, b"3") == [3]
    assert await store.get_session("session-1") == stored
    assert raws(await store.get_frames("session-1")) == [b"1", b"2", b"3"]
    assert caplog.records == []


async def test_a_file_that_is_moved_away_gets_all_of_its_log(
    store: SQLiteStore, path: Path, stored: Session, at_once: Callable[[], None]
) -> None:
    at_once()
    path.rename(path.with_name("away.db"))
    await store.ping()
    assert await list_all(store) == []
    async with SQLiteStore(path.with_name("away.db"), clock=store.clock) as away:
        assert await away.get_session("session-1") == stored
        assert raws(await away.get_frames("session-1")) == [b"1"]


async def test_what_cannot_be_brought_into_the_moved_file_is_put_aside(
    store: SQLiteStore,
    path: Path,
    stored: Session,
    at_once: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once()

    def fail(db: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(place_module, "truncate", fail)
    path.rename(path.with_name("away.db"))
    await store.ping()
    assert await list_all(store) == []
    # With its log it is whole.
    path.with_name("sessions.db-wal.old").rename(path.with_name("away.db-wal"))
    with closing(sqlite3.connect(path.with_name("away.db"))) as db:
        assert db.execute("SELECT id FROM sessions").fetchall() == [("session-1",)]


async def test_a_log_that_somebody_reads_is_left_alone(
    store: SQLiteStore, path: Path, stored: Session, at_once: Callable[[], None]
) -> None:
    at_once()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM sessions").fetchone()
        await add_raws(store, b"2")
        path.unlink()
        await refuse(store.ping, partial(store.get_session, "session-1"))
        assert all(each.exists() for each in beside(path))
        other.execute("COMMIT")
        await store.ping()
    assert await store.get_session("session-1") is None


# -- replaced ---------------------------------------------------------------------------------------


async def test_a_backup_that_takes_the_place_of_the_file_counts_at_once(
    store: SQLiteStore, path: Path, clock: FakeClock, stored: Session, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(path.with_name("backup"))) as copy:
        db.backup(copy)
    await store.delete_session("session-1")
    await store.create_session(new_session(clock, "later"))
    os.replace(path.with_name("backup"), path)  # noqa: PTH105
    # Nothing of what the log of the other file held gets into this one.
    assert await add_raws(store, b"2") == [2]
    assert await list_all(store) == [stored]
    assert [each.message for each in caplog.records] == [
        f"{path} is another file than before: what is in that one counts now"
    ]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_nothing_is_read_from_a_replacement_before_the_writer_has_it(
    store: SQLiteStore, path: Path, stored: Session, tmp_path: Path
) -> None:
    async with SQLiteStore(tmp_path / "other.db"):
        pass
    (tmp_path / "other.db").rename(path)
    # This drops the reader's connection; the log that is there belongs to another file.
    with pytest.raises(StoreUnavailable, match="nowhere"):
        await store._read(lambda on: on.db.execute("SELECT * FROM nowhere"))
    await refuse(partial(store.get_session, "session-1"))
    await store.ping()
    assert await store.get_session("session-1") is None


async def test_a_replacement_that_is_replaced_while_it_is_opened(
    store: SQLiteStore, path: Path, stored: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("second", "third"):
        async with SQLiteStore(path.with_name(name)):
            pass
    connect = sqlite3.connect

    def replace_and_connect(*args: object, **kwargs: object) -> sqlite3.Connection:
        db = connect(*args, **kwargs)  # type: ignore[call-overload]
        if path.with_name("third").exists():
            path.with_name("third").rename(path)
        return db  # type: ignore[no-any-return]

    path.with_name("second").rename(path)
    monkeypatch.setattr(sqlite3, "connect", replace_and_connect)
    await refuse(store.ping)
    await store.ping()


async def followed_until_it_fails(store: SQLiteStore, found: list[bytes]) -> None:
    async with aclosing(store.follow_frames("session-1")) as frames:
        with pytest.raises(StoreUnavailable):  # noqa: PT012 - after any number of frames
            while True:
                found.append((await anext(frames)).envelope.raw)


async def test_who_follows_hears_of_it(store: SQLiteStore, path: Path, stored: Session) -> None:
    found: list[bytes] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(followed_until_it_fails, store, found)
            while not found:
                await anyio.lowlevel.checkpoint()
            path.unlink()
            await refuse(store.ping)


async def test_who_follows_gets_no_frames_of_another_file(
    store: SQLiteStore,
    path: Path,
    clock: FakeClock,
    stored: Session,
    at_once: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once()
    # Who is told in time does not even look.
    monkeypatch.setattr(Tails, "wake_all", lambda tails: None)
    found: list[bytes] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(followed_until_it_fails, store, found)
            while not found:
                await anyio.lowlevel.checkpoint()
            path.unlink()
            # Its number is that of the one that is followed.
            await store.create_session(new_session(clock, "other"))
            await add_raws(store, b"secret", b"secret", session_id="other")
    assert found == [b"1"]
