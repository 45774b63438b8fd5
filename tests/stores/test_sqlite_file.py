"""The file of a `SQLiteStore`: whose it is, where the URL says it is, and which schema it has."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from shadowcat_stores import SQLiteStore, StoreLimits, StoreUnusable, store_from_url
from shadowcat_stores._sqlite import schema
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, new_session
from tests.stores.unprivileged import umask


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def query(path: Path, *statements: str) -> list[object]:
    """Return what another program is answered, statement by statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        rows = [other.execute(statement).fetchone() for statement in statements]
    return [None if row is None else row[0] for row in rows]


# -- whose it is ------------------------------------------------------------------------------------


async def test_the_file_and_those_beside_it_are_their_owners_alone(path: Path) -> None:
    with umask(0):
        async with SQLiteStore(path, clock=FakeClock()) as store:
            await store.create_session(new_session(FakeClock()))
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(("sessions.db", "sessions.db-shm", "sessions.db-wal"), 384)


async def test_the_file_is_private_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not made for everybody first, then taken back."""
    seen = []
    connect = sqlite3.connect

    def look(*args: object, **kwargs: object) -> sqlite3.Connection:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        return connect(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", look)
    with umask(0):
        async with SQLiteStore(path):
            pass
    assert seen == [0o600] * 3


async def test_the_rights_that_somebody_gave_a_file_stay(path: Path) -> None:
    async with SQLiteStore(path):
        pass
    path.chmod(0o640)
    async with SQLiteStore(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_a_relative_path_is_where_it_was_when_the_store_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = SQLiteStore("sessions.db")
    monkeypatch.chdir(tmp_path)
    async with store:
        assert (tmp_path / "here" / "sessions.db").exists()


async def test_a_link_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "sessions.db")
    with umask(0):
        async with SQLiteStore(tmp_path / "link.db"):
            assert stat.S_IMODE((tmp_path / "sessions.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["with space.db", "per%20cent?mode=ro&x#y.db", "ümläut.db"])
async def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    async with SQLiteStore(tmp_path / name) as store:
        await store.ping()
    assert [each.name for each in tmp_path.iterdir()] == [name]


# -- its URL ----------------------------------------------------------------------------------------


async def test_a_url_of_three_slashes_is_a_path_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_from_url("sqlite:///some%20where.db")
    assert type(store) is SQLiteStore
    assert store.limits == StoreLimits()
    async with store:
        assert (tmp_path / "some where.db").exists()


async def test_a_url_of_four_slashes_is_a_path_from_the_root(tmp_path: Path) -> None:
    async with store_from_url(f"sqlite:///{tmp_path}/sessions.db"):
        assert (tmp_path / "sessions.db").exists()


async def test_a_url_with_options(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sessions.db"
    store = store_from_url(
        f"{url}?max_sessions=5&max_frames=6&max_frame_bytes=7&max_streams=8&busy_timeout=0.5"
    )
    assert store.limits == StoreLimits(sessions=5, frames=6, frame_bytes=7, streams=8)
    assert isinstance(store, SQLiteStore)
    assert store._database.patience == 0.5
    assert await _synchronous(store) == 1
    for option, level in (("normal", 1), ("full", 2)):
        assert await _synchronous(SQLiteStore.from_url(f"{url}?synchronous={option}")) == level


async def _synchronous(store: SQLiteStore) -> int:
    async with store:
        level = await store._write(lambda on: on.db.execute("PRAGMA synchronous").fetchone()[0])
    assert isinstance(level, int)
    return level


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite://sessions.db",
        "sqlite:///directory/",
        "sqlite:///sessions.db#top",
        "sqlite:///sessions.db?sessions=5",
        "sqlite:///sessions.db?max_sessions",
        "sqlite:///sessions.db?max_sessions=0",
        "sqlite:///sessions.db?max_sessions=many",
        "sqlite:///sessions.db?max_sessions=1&max_sessions=2",
        "sqlite:///sessions.db?busy_timeout=long",
        "sqlite:///sessions.db?busy_timeout=-1",
        "sqlite:///sessions.db?busy_timeout=nan",
        "sqlite:///sessions.db?synchronous=off",
        "memory://",
    ],
)
def test_any_other_url_says_what_to_write(url: str) -> None:
    with pytest.raises(ValueError, match=r"write sqlite:///file .*max_streams=N&busy_timeout=SECONDS"):
        SQLiteStore.from_url(url)


def test_a_store_without_a_file_is_a_memory_store() -> None:
    with pytest.raises(ValueError, match="write memory:// for that"):
        SQLiteStore.from_url("sqlite:///:memory:")


def test_another_way_to_be_synchronous_is_refused() -> None:
    with pytest.raises(ValueError, match="write 'normal' or 'full'"):
        SQLiteStore("sessions.db", synchronous="off")


# -- its schema -------------------------------------------------------------------------------------


async def test_a_new_file_has_the_newest_schema_and_can_shrink(path: Path) -> None:
    async with SQLiteStore(path):
        pass
    found = query(path, "PRAGMA user_version", "PRAGMA auto_vacuum", "PRAGMA journal_mode")
    assert found == [len(schema.STEPS), 2, "wal"]


async def test_a_file_of_a_newer_schema_is_left_alone(path: Path) -> None:
    async with SQLiteStore(path, clock=FakeClock()) as store:
        stored = await store.create_session(new_session(FakeClock()))
    newer = len(schema.STEPS) + 1
    query(path, f"PRAGMA user_version = {newer}")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=rf"version {newer}.*upgrade shadowcat-mcp, or name another file"):
        await store.open()
    assert store.is_open is False
    assert path.read_bytes() == before
    query(path, f"PRAGMA user_version = {newer - 1}")
    async with store:
        assert await store.get_session("session-1") == stored


async def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    query(path, "CREATE TABLE theirs (a)")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="of another program: name another file"):
        await SQLiteStore(path).open()
    assert path.read_bytes() == before


def _step_1(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE notes (text TEXT)")
    db.execute("INSERT INTO notes VALUES ('kept')")
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")


def _step_2(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE notes ADD COLUMN author TEXT DEFAULT 'nobody'")


def _bad_step(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM notes")
    db.execute("SELECT no_such_column FROM notes")


@pytest.mark.parametrize("from_version", [0, 1, 2])
def test_a_file_of_an_older_schema_gets_the_steps_it_lacks(path: Path, from_version: int) -> None:
    steps = (_step_1, _step_2)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.migrate(db, path, steps[:from_version])
        schema.migrate(db, path, steps)
        assert db.execute("SELECT text, author FROM notes").fetchall() == [("kept", "nobody")]
        assert schema.version_of(db, path, steps) == 2


def test_a_step_that_fails_leaves_the_older_schema_whole(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.migrate(db, path, (_step_1,))
        with pytest.raises(sqlite3.OperationalError, match="no_such_column"):
            schema.migrate(db, path, (_step_1, _step_2, _bad_step))
        assert db.in_transaction is False
        assert db.execute("SELECT * FROM notes").fetchall() == [("kept",)]
        assert schema.version_of(db, path, (_step_1,)) == 1


async def test_a_store_of_an_older_schema_keeps_what_it_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_moods(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE sessions ADD COLUMN mood TEXT")

    async with SQLiteStore(path, clock=FakeClock()) as store:
        stored = await store.create_session(new_session(FakeClock()))
        await add_raws(store, b"1", b"2")
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, add_moods))
    async with store:
        assert await store.get_session("session-1") == stored
        assert len(await store.get_frames("session-1")) == 2
        await store.create_session(new_session(FakeClock(), "session-2"))
    assert query(path, "PRAGMA user_version", "SELECT count(mood) FROM sessions") == [len(schema.STEPS), 0]
