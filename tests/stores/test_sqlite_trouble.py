"""What befalls the file of a `SQLiteStore`: each trouble is said, loses nothing, and passes."""

import errno
import os
import resource
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from shadowcat_stores import SQLiteStore, StoreUnavailable, StoreUnusable
from shadowcat_stores._sqlite import threads as threads_module
from shadowcat_stores._sqlite.threads import Writer
from shadowcat_stores._sqlite.writes import Writes
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, new_frame, new_session, raws, seqs, together
from tests.stores.unprivileged import unprivileged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="shadowcat-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep the file locked, as another program does that writes for long."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# -- locked -----------------------------------------------------------------------------------------


async def test_a_lock_that_lasts_is_said_within_the_timeout_and_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 0.0)
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock, busy_timeout=0.05) as store:
        stored = await store.create_session(new_session(clock))
        with locked(path), anyio.fail_after(5):
            with pytest.raises(StoreUnavailable, match=r"keeps it locked: end its transaction.*busy_timeout"):
                await store.add_frame(new_frame())
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.ping()
            assert await store.get_session("session-1") == stored
        await store.ping()
        assert await add_raws(store, b"1") == [1]
    # To tidy can wait: nobody needs to hear of it.
    assert caplog.records == []


async def test_those_who_come_while_a_lock_lasts_wait_no_longer_than_the_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 0

    def begin(writer: Writer, patience: float) -> Writes:
        nonlocal waits
        waits += patience > 0
        return begin_really(writer, patience)

    begin_really = Writer._begin
    monkeypatch.setattr(Writer, "_begin", begin)
    async with SQLiteStore(path, busy_timeout=0.05) as store:
        await store.ping()
        waits = 0
        with locked(path), anyio.fail_after(5):
            answers = await together([partial(store.touch_session, "session-1", 4e9)] * 1_000)
        assert {type(each) for each in answers} == {StoreUnavailable}
        assert waits <= 2


async def test_a_store_opens_when_a_lock_passes(path: Path) -> None:
    async with SQLiteStore(path):
        pass
    store = SQLiteStore(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        # Not even reads pass.
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(2):
            assert await refusal(store) is StoreUnavailable
        async with anyio.create_task_group() as tasks:
            patient = SQLiteStore(path, busy_timeout=30.0)
            tasks.start_soon(patient.open)
            await anyio.wait_all_tasks_blocked()
            assert patient.is_open is False
            await anyio.to_thread.run_sync(other.close)
        await patient.ping()
        await patient.aclose()
    async with store:
        await store.ping()


async def refusal(store: SQLiteStore) -> type[StoreUnavailable]:
    """Return what `open` raises, and check that nothing of it is left."""
    before = threading.enumerate()
    with pytest.raises(StoreUnavailable) as raised:
        await store.open()
    assert store.is_open is False
    assert threading.enumerate() == before
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.count_sessions()
    return raised.type


# -- not to be written ------------------------------------------------------------------------------


async def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "missing" / "sessions.db")
    with pytest.raises(StoreUnusable, match=r"missing/sessions\.db cannot be made .*make its directory"):
        await store.open()
    (tmp_path / "missing").mkdir()
    async with store:
        await store.ping()


async def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="let this user write there, or name another file"):
        await SQLiteStore(tmp_path).open()


async def test_a_directory_that_takes_no_files(public: Path) -> None:
    public.chmod(0o555)
    with unprivileged(), pytest.raises(StoreUnusable, match=r"cannot be made \(Permission denied\)"):
        await SQLiteStore(public / "sessions.db").open()
    public.chmod(0o755)
    async with SQLiteStore(public / "sessions.db") as store:
        await store.ping()


async def test_a_disk_that_cannot_be_shared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    # Such a database cannot have a write-ahead log either.
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **options: connect(":memory:", isolation_level=None))
    with pytest.raises(StoreUnusable, match="cannot have a write-ahead log: name a file on a local disk"):
        await SQLiteStore(path).open()


@pytest.mark.parametrize("directory_mode", [0o555, 0o777])
async def test_a_file_that_may_only_be_read(public: Path, directory_mode: int) -> None:
    store = SQLiteStore(public / "sessions.db", clock=FakeClock())
    async with store:
        stored = await store.create_session(new_session(FakeClock()))
    (public / "sessions.db").chmod(0o444)
    public.chmod(directory_mode)
    with unprivileged(), pytest.raises(StoreUnusable, match=r"sessions\.db: .*let this user write"):
        await store.open()
    public.chmod(0o755)
    (public / "sessions.db").chmod(0o644)
    async with store:
        assert await store.get_session("session-1") == stored


async def test_a_file_that_others_write_and_this_user_may_only_read(public: Path) -> None:
    async with SQLiteStore(public / "sessions.db", clock=FakeClock()) as others:
        await others.create_session(new_session(FakeClock()))
        for each in public.iterdir():
            each.chmod(0o644)
        store = SQLiteStore(public / "sessions.db")
        with unprivileged():
            assert await refusal(store) is StoreUnusable


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
        (errno.EIO, StoreUnavailable),
        (errno.EROFS, StoreUnusable),
        (errno.ENAMETOOLONG, StoreUnusable),
    ],
)
async def test_what_may_pass_is_told_from_what_will_not_where_a_file_cannot_be_made(
    path: Path, number: int, kind: type[StoreUnavailable]
) -> None:
    store = SQLiteStore(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", raising(OSError(number, os.strerror(number))))
        assert await refusal(store) is kind
    async with store:
        await store.ping()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_CANTOPEN, StoreUnavailable),  # too many open files
        (sqlite3.SQLITE_FULL, StoreUnavailable),
        (sqlite3.SQLITE_IOERR_WRITE, StoreUnavailable),
        (sqlite3.SQLITE_IOERR_SHMMAP, StoreUnusable),
        (sqlite3.SQLITE_READONLY, StoreUnusable),
    ],
)
async def test_what_may_pass_is_told_from_what_will_not_where_a_file_cannot_be_opened(
    path: Path, code: int, kind: type[StoreUnavailable]
) -> None:
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = code
    store = SQLiteStore(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", raising(error))
        assert await refusal(store) is kind
    async with store:
        await store.ping()


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


async def test_a_file_that_turns_read_only_and_back(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        stored = await store.create_session(new_session(clock))
        await store._write(lambda on: on.db.execute("PRAGMA query_only = ON"))
        with pytest.raises(StoreUnavailable, match=r"attempt to write a readonly.*let this user write"):
            await store.add_frame(new_frame())
        assert await store.get_session("session-1") == stored
        # The writer has opened the file anew, which is what a disk needs that was mounted read-only.
        assert await add_raws(store, b"1") == [1]


# -- full -------------------------------------------------------------------------------------------


async def test_a_full_disk_loses_nothing_and_passes(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        stored = await store.create_session(new_session(clock))
        await add_raws(store, b"1", stream="t", event_id="e1")
        await store._write(lambda on: on.db.execute("PRAGMA max_page_count = 20").fetchone())
        large = new_frame(b"x" * 100_000, stream="t", event_id="e2")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="the disk is full: free some space"):
                await store.add_frame(large)
            with pytest.raises(StoreUnavailable, match="full"):
                await store.add_frames([new_frame(b"with it"), large])
        assert await store.get_session("session-1") == stored
        assert raws(await store.get_frames("session-1")) == [b"1"]
        assert await store.get_last_event_id("session-1", stream="t") == "e1"
        # What still has room is taken, also where it waits in line with what has none.
        answers = await together([partial(store.add_frame, each) for each in (large, new_frame(b"2"), large)])
        assert [type(each) for each in answers] == [StoreUnavailable, int, StoreUnavailable]
        await store._write(lambda on: on.db.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert await store.add_frame(large) == 3
        assert seqs(await store.get_frames("session-1")) == [1, 2, 3]


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_not_ready(path: Path) -> None:
    async with SQLiteStore(path, clock=FakeClock()) as store:
        await store.create_session(new_session(FakeClock()))
        with no_room():
            for call in (store.ping, partial(store.add_frame, new_frame()), store.ping):
                with pytest.raises(StoreUnavailable, match="the disk fails or is full"):
                    await call()
        await store.ping()
        assert await add_raws(store, b"1") == [1]


async def test_to_ask_whether_it_is_ready_leaves_nothing(path: Path) -> None:
    async with SQLiteStore(path, clock=FakeClock()) as store:
        await store.ping()
        assert await store._read(lambda on: on.db.execute("SELECT * FROM graves").fetchall()) == []


async def test_tidying_waits_until_the_disk_has_room(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 0.0)
    clock = FakeClock()
    failing = True

    def tidy(on: Writes, most: int) -> bool:
        if failing:
            raise sqlite3.OperationalError("there is no room")
        return tidy_really(on, most)

    tidy_really = Writes.tidy
    monkeypatch.setattr(Writes, "tidy", tidy)
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock, ttl=60.0))
        await add_raws(store, b"1")
        clock.advance(60)
        for _ in range(10):
            await store.ping()
        assert [each.message for each in caplog.records] == [
            f"the store's upkeep has to wait: {path}: there is no room: look at the file and its disk"
        ]
        failing = False
        with anyio.fail_after(5):
            while await store._read(lambda on: on.db.execute("SELECT count(*) FROM entries").fetchone()[0]):
                await store.ping()


# -- damaged ----------------------------------------------------------------------------------------

_DAMAGED = "damaged, or no SQLite database: stop whoever uses it, move it away .* put a backup in its place"


def overwrite(path: Path, content: bytes) -> None:
    """Write the file over, without an empty one in between."""
    with path.open("r+b") as file:
        file.write(content)


async def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)
    store = SQLiteStore(path)
    with pytest.raises(StoreUnusable, match=_DAMAGED):
        await store.open()
    path.unlink()
    async with store:
        await store.ping()


async def test_a_damaged_file_that_is_restored(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        stored = await store.create_session(new_session(clock))
        await store.add_frames([new_frame(b"%d" % number) for number in range(1000)])
    whole = path.read_bytes()
    # The first page tells what is in the file; the others hold it.
    overwrite(path, whole[:4096] + b"\xff" * (len(whole) - 4096))
    async with store:
        for call in (
            partial(store.get_session, "session-1"),
            partial(store.get_frames, "session-1"),
            partial(store.delete_frames, "session-1"),
            partial(store.add_frame, new_frame()),
        ):
            with pytest.raises(StoreUnavailable, match=_DAMAGED):
                await call()
        overwrite(path, whole)
        assert await store.get_session("session-1") == stored
        assert len(await store.get_frames("session-1")) == 1000
        assert await store.add_frame(new_frame()) == 1001


async def test_a_file_that_is_being_restored_is_not_made_anew(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        stored = await store.create_session(new_session(clock))
    whole = path.read_bytes()
    overwrite(path, whole[:4096] + b"\xff" * (len(whole) - 4096))
    async with store:
        for content in (b"\xff" * len(whole), b""):
            # As `cp` does it: the file is empty for a moment.
            path.write_bytes(content)
            for call in (
                partial(store.get_session, "session-1"),
                partial(store.add_frame, new_frame()),
                store.ping,
            ):
                with pytest.raises(StoreUnavailable):
                    await call()
        path.write_bytes(whole)
        assert await store.get_session("session-1") == stored
        assert await store.add_frame(new_frame()) == 1


async def test_a_record_that_cannot_be_read(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        await store.create_session(new_session(clock, "session-2"))
        await store._write(lambda on: on.db.execute("UPDATE records SET record = x'00' WHERE session = 1"))
        with pytest.raises(StoreUnavailable, match=_DAMAGED):
            await store.get_session("session-1")
        assert await store.get_session("session-2") is not None


async def test_an_error_of_no_known_kind_is_said_as_it_is(path: Path) -> None:
    async with SQLiteStore(path) as store:
        with pytest.raises(StoreUnavailable, match="readonly database"):
            await store._read(lambda on: on.db.execute("DELETE FROM sessions"))
        with pytest.raises(StoreUnavailable, match=r"sessions\.db: no such table: nowhere: look at the file"):
            await store._read(lambda on: on.db.execute("SELECT * FROM nowhere"))
        await store.ping()


async def test_a_defect_of_the_store_itself_is_no_store_error(path: Path) -> None:
    def defect(on: object) -> None:
        raise ZeroDivisionError

    async with SQLiteStore(path) as store:
        for submit in (store._read, store._write):
            with pytest.raises(ZeroDivisionError):
                await submit(defect)
        await store.ping()
