"""What a `SQLiteStore` costs, however much is in it: its calls, its tidying, and the size of its file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from shadowcat_stores import SQLiteStore, StoreLimits, Window
from shadowcat_stores._packing import ENTRY_BYTES
from shadowcat_stores._sqlite import threads as threads_module
from shadowcat_stores._sqlite.reads import Reads
from shadowcat_stores._sqlite.tidy import shrink
from shadowcat_stores._sqlite.writes import Writes
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, list_all, new_frame, new_session, raws, together


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


On = TypeVar("On", Reads, Writes)


def instructions(on: Reads | Writes, work: Callable[[], object]) -> int:
    """Return how many of SQLite's instructions the work takes: a cost that is the same on every machine."""
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1

    on.db.set_progress_handler(count, 1)
    try:
        work()
    finally:
        on.db.set_progress_handler(None, 0)
    return taken


async def fill(store: SQLiteStore, clock: FakeClock, sessions: range, *, ttl: float = 60.0) -> None:
    await together(
        [partial(store.create_session, new_session(clock, f"s{number}", ttl=ttl)) for number in sessions]
    )


READS: list[Callable[[Reads], object]] = [
    lambda on: on.session("s7"),
    lambda on: on.count(),
    lambda on: on.page(100, 0, None),
    lambda on: on.page(10, 50, "default"),
    lambda on: on.page(10, 0, "other"),
    lambda on: on.frames("s7", None, 0, None),
    lambda on: on.tail(on.file, 8, None, 0, 100),
]
WRITES: list[Callable[[Writes], object]] = [
    lambda on: on.create("new", "default", 4e9, b""),
    lambda on: on.touch("s7", 4e9),
    lambda on: on.append_one(new_frame(b"{}", "s7"), None),
    lambda on: on.delete_frames("s7"),
    lambda on: on.delete("new"),
    lambda on: on.tidy(10),
]


async def test_the_cost_of_a_call_does_not_grow_with_the_sessions(path: Path) -> None:
    clock = FakeClock()

    def costs_of(works: list[Callable[[On], object]], on: On) -> list[int]:
        # Twice: a first time statements are prepared, too.
        return [[instructions(on, partial(work, on)) for work in works] for _ in range(2)][1]

    async with SQLiteStore(path, clock=clock, limits=StoreLimits(sessions=4_000)) as store:
        costs = []
        for sessions in (range(200), range(200, 3_000)):
            await fill(store, clock, sessions)
            costs.append(await store._read(partial(costs_of, READS)))
            costs.append(await store._write(partial(costs_of, WRITES)))
    assert costs[:2] == costs[2:]


async def test_a_step_of_tidying_costs_the_same_however_much_has_expired(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 3600.0)
    costs = []
    for number, sessions in enumerate((300, 3_000)):
        clock = FakeClock()
        async with SQLiteStore(path.with_name(f"{number}.db"), clock=clock) as store:
            await fill(store, clock, range(sessions), ttl=60.0)

            def record(on: Writes, sessions: int = sessions) -> None:
                for each in range(10):
                    for _ in range(sessions):
                        on.append_one(new_frame(session_id=f"s{each}"), None)

            await store._write(record)
            clock.advance(60)

            def tidy(on: Writes) -> list[int]:
                # In one go: the writer itself begins to tidy when there is something to be done.
                return [instructions(on, lambda: on.tidy(100)) for _ in range(3)]

            costs.append(await store._write(tidy))
    assert costs[0] == costs[1]


async def test_a_large_tape_is_deleted_at_once_and_cleared_away_later(path: Path) -> None:
    clock = FakeClock()
    costs = []
    async with SQLiteStore(path, clock=clock) as store:
        for frames in (1, 5_000):
            await store.create_session(new_session(clock))
            await store.add_frames([new_frame(stream="t", event_id="e")] * frames)
            costs.append(await store._write(lambda on: instructions(on, lambda: on.delete("session-1"))))
        assert costs[0] == costs[1]
        with anyio.fail_after(5):
            while await store._read(left_over) > 0:
                await store.ping()


_ENTRIES = "SELECT count(*) FROM entries"
_STREAMS = "SELECT count(*) FROM streams"
_GRAVES = "SELECT count(*) FROM graves"
_RECORDS = "SELECT (SELECT count(*) FROM records) - (SELECT count(*) FROM sessions)"


def left_over(on: Reads) -> int:
    """Return how many rows there are besides those of sessions."""
    counts = (on.db.execute(each) for each in (_ENTRIES, _STREAMS, _GRAVES, _RECORDS))
    return sum(count.fetchone()[0] for count in counts)


async def test_pages_of_many_sessions_some_of_them_expired(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await fill(store, clock, range(1_500), ttl=60.0)
        await fill(store, clock, range(1_500, 2_000), ttl=600.0)
        clock.advance(60)
        assert await store.count_sessions() == 500
        assert [each.id for each in await list_all(store, limit=37)] == [f"s{n}" for n in range(1_500, 2_000)]


async def test_room_is_found_among_the_expired_before_they_are_cleared_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 3600.0)
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock, limits=StoreLimits(sessions=10)) as store:
        await store.ping()
        await fill(store, clock, range(7), ttl=60.0)
        await fill(store, clock, range(7, 10), ttl=600.0)
        clock.advance(60)
        await fill(store, clock, range(10, 30), ttl=600.0)
        assert await store.count_sessions() == 10
        assert [each.id for each in await list_all(store)] == [f"s{number}" for number in range(7, 17)]


async def test_the_file_shrinks_as_sessions_expire(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 0.0)
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock, "kept", ttl=600.0))
        await add_raws(store, b"kept", session_id="kept")
        await fill(store, clock, range(50), ttl=60.0)
        for each in range(50):
            await store.add_frames([new_frame(b"x" * 5_000, f"s{each}")] * 40)
        await store._write(lambda on: None)
        # Ten megabytes are in the file and its log together.
        assert size_of(path) > 10_000_000
        clock.advance(60)
        with anyio.fail_after(10):
            while size_of(path) > 1_000_000:
                await store.ping()
        assert raws(await store.get_frames("kept")) == [b"kept"]


async def test_a_step_of_shrinking_takes_as_many_pages_as_it_may(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 3600.0)
    clock = FakeClock()

    def step(on: Writes) -> tuple[int, int]:
        (before,) = on.db.execute("PRAGMA page_count").fetchone()
        more = shrink(on.db, 100)
        (after,) = on.db.execute("PRAGMA page_count").fetchone()
        return more, before - after

    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        await store.add_frames([new_frame(b"x" * 4_000)] * 400)
        assert await store._write(step) == (False, 0)
        # Not through the session's end, after which the writer shrinks the file by itself.
        await store.delete_frames("session-1")
        steps = [await store._write(step) for _ in range(6)]
        assert steps == [(True, 100)] * 3 + [(True, steps[3][1]), (False, 0), (False, 0)]


def size_of(path: Path) -> int:
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}-wal")))


async def pages_of(store: SQLiteStore) -> int:
    (pages,) = await store._read(lambda on: on.db.execute("PRAGMA page_count").fetchone())
    assert isinstance(pages, int)
    return pages


async def test_a_window_of_bytes_bounds_the_file(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        for _ in range(50):
            await store.add_frames([new_frame(b"x" * 5_000)] * 40, keep=Window(bytes=200_000))
        assert await pages_of(store) * 4096 < 1_500_000
        assert len(await store.get_frames("session-1")) == 40
        # An entry goes when all of its frames are too many.
        assert await store._read(left_over) <= 200_000 // ENTRY_BYTES + 2


async def test_a_window_of_frames_bounds_the_file(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        rows = []
        for number in range(600):
            await store.add_frame(new_frame(b"%d" % number), keep=Window(frames=10))
            rows.append(await store._read(left_over))
        assert max(rows) == 10 + 127
        assert raws(await store.get_frames("session-1")) == [b"%d" % number for number in range(590, 600)]
