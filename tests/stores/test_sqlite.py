"""What only `SQLiteStore` promises of its threads and of those who follow."""

import asyncio
import atexit
import gc
import itertools
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis.strategies import DataObject, data, integers, none, sampled_from

from shadowcat_stores import Frame, MemoryStore, SessionStore, SQLiteStore, StoreLimits, Window
from shadowcat_stores._sqlite import tails as tails_module
from shadowcat_stores._sqlite import threads as threads_module
from shadowcat_stores._sqlite.reads import Reads
from shadowcat_stores._sqlite.worker import Worker
from shadowcat_stores.testing import FakeClock, SessionStoreContract, store_state_machine
from shadowcat_stores.testing.harness import add_raws, new_frame, new_session, raws, take, together


class TestSQLiteStore(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return SQLiteStore(self.path, clock=clock, limits=limits)


_directory = tempfile.TemporaryDirectory(prefix="shadowcat-")
atexit.register(_directory.cleanup)
_names = itertools.count()


async def make_sqlite_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
    return SQLiteStore(Path(_directory.name) / f"{next(_names)}.db", clock=clock, limits=limits)


TestSQLiteStoreAsAMachine = store_state_machine(make_sqlite_store)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@asynccontextmanager
async def held(worker: Worker[Any]) -> AsyncIterator[TaskGroup]:
    """Keep the thread busy for as long as the block lasts; what is started in it waits in line."""
    begun, release = anyio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(on: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(5)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.submit, work)
            try:
                await begun.wait()
                yield tasks
                await anyio.wait_all_tasks_blocked()
            finally:
                release.set()


# -- threads ----------------------------------------------------------------------------------------


async def test_the_loop_and_all_reads_go_on_while_a_write_waits_for_a_lock(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock, busy_timeout=30.0) as store:
        stored = await store.create_session(new_session(clock))
        created = anyio.Event()

        async def create() -> None:
            await store.create_session(new_session(clock, "session-2"))
            created.set()

        with anyio.fail_after(5), closing(sqlite3.connect(path, isolation_level=None)) as other:
            async with anyio.create_task_group() as tasks:
                other.execute("BEGIN IMMEDIATE")
                tasks.start_soon(create)
                for _ in range(50):
                    assert await store.get_session("session-1") == stored
                    assert await store.get_frames("session-1") == []
                assert not created.is_set()
                other.execute("ROLLBACK")
        assert await store.count_sessions() == 2


async def test_writes_that_wait_share_a_transaction(path: Path) -> None:
    clock = FakeClock()
    statements: list[str] = []
    async with SQLiteStore(path, clock=clock) as store:
        await store._write(lambda on: on.db.set_trace_callback(statements.append))
        async with held(store._running().writer) as tasks:
            for number in range(100):
                tasks.start_soon(store.create_session, new_session(clock, f"s{number}"))
        assert await store.count_sessions() == 100
        # One for the writer's being held, one for all creates, and those of looks for what has expired.
        assert statements.count("COMMIT") < 10


async def test_of_writes_in_one_transaction_a_bad_one_hurts_no_other(path: Path) -> None:
    clock = FakeClock()
    answers: dict[str, object] = {}
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))

        async def add(name: str, frame: Frame) -> None:
            try:
                answers[name] = await store.add_frame(frame)
            except Exception as error:  # noqa: BLE001 - whatever escapes is the answer
                answers[name] = type(error)

        async with held(store._running().writer) as tasks:
            tasks.start_soon(add, "first", new_frame(stream="t", event_id="e1"))
            tasks.start_soon(add, "no unicode", new_frame(stream="t", event_id="\ud800"))
            tasks.start_soon(add, "65 bits", new_frame(stream="t", event_id="e2", position=2**65))
            tasks.start_soon(add, "last", new_frame(stream="t"))
        assert answers.pop("first") == 1
        assert answers.pop("last") == 2
        assert answers == {"no unicode": UnicodeEncodeError, "65 bits": ValueError}
        assert await store.get_last_event_id("session-1", stream="t") == "e1"
        assert len(await store.get_frames("session-1")) == 2


async def test_a_long_read_of_a_tape_holds_up_no_session(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(Reads, "frames", lambda *arguments: release.wait(5))
    async with SQLiteStore(path, clock=FakeClock()) as store:
        stored = await store.create_session(new_session(FakeClock()))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.get_frames, "session-1")
                await anyio.wait_all_tasks_blocked()
                assert await store.get_session("session-1") == stored
                assert await add_raws(store, b"1") == [1]
                assert not release.is_set()
                release.set()


async def test_numbers_beyond_what_is_stored_are_no_error(path: Path) -> None:
    async with SQLiteStore(path, clock=FakeClock()) as store:
        stored = await store.create_session(new_session(FakeClock()))
        await add_raws(store, b"1")
        assert await store.get_frames("session-1", after=2**70) == []
        assert len(await store.get_frames("session-1", limit=2**70)) == 1
        assert (await store.list_sessions(limit=2**70)).sessions == [stored]
        with pytest.raises(ValueError, match="cursor"):
            await store.list_sessions(cursor=str(2**70))
        with anyio.move_on_after(0.01):
            await take(store, 1, after=2**70)


async def test_closing_does_what_was_asked_for_and_leaves_no_thread(path: Path) -> None:
    clock = FakeClock()
    before = threading.enumerate()
    store = SQLiteStore(path, clock=clock)
    await store.open()
    assert len(threading.enumerate()) == len(before) + 3
    async with held(store._running().writer) as tasks:
        for number in range(200):
            tasks.start_soon(store.create_session, new_session(clock, f"s{number}"))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(store.aclose)
    assert threading.enumerate() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    async with store:
        assert await store.count_sessions() == 200


async def test_opening_many_at_once_makes_one_file(path: Path) -> None:
    async with AsyncExitStack() as stack:
        stores = [SQLiteStore(path, clock=FakeClock()) for _ in range(8)]
        await together([store.open for store in stores for _ in range(2)])
        for store in stores:
            await stack.enter_async_context(store)
        await stores[0].create_session(new_session(FakeClock()))
        assert [await store.count_sessions() for store in stores] == [1] * 8


def test_a_store_left_open_in_a_loop_that_is_gone_closes_in_another(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)

    async def leave_open() -> None:
        await store.open()
        await store.create_session(new_session(clock))

    async def close_and_open() -> None:
        with anyio.fail_after(5):
            await store.aclose()
            async with store:
                assert await store.count_sessions() == 1

    anyio.run(leave_open)
    anyio.run(close_and_open)


def test_a_write_whose_loop_is_gone_is_done_all_the_same(path: Path) -> None:
    clock = FakeClock()
    store = SQLiteStore(path, clock=clock)
    release = threading.Event()

    async def leave() -> Coroutine[Any, Any, object]:
        await store.open()
        waiting = store._write(lambda on: release.wait(5))
        # As a loop that is stopped leaves it: begun, and never gone on with.
        waiting.send(None)
        store.create_session(new_session(clock)).send(None)
        return waiting

    async def look() -> None:
        with anyio.fail_after(5):
            await store.aclose()
            async with store:
                assert await store.count_sessions() == 1

    anyio.run(leave).close()
    release.set()
    anyio.run(look)


async def test_a_store_that_nobody_closed_says_so_and_ends_its_threads(path: Path) -> None:
    before = threading.enumerate()
    store = SQLiteStore(path)
    await store.open()
    threads = [each for each in threading.enumerate() if each not in before]
    with pytest.warns(ResourceWarning, match="SQLiteStore.* was not closed"):  # noqa: PT031
        del store
        gc.collect()
    for each in threads:
        each.join(5)
    assert threading.enumerate() == before


# -- tapes ------------------------------------------------------------------------------------------


@given(data())
@settings(max_examples=20, deadline=None)
def test_packed_tapes_are_trimmed_as_those_in_memory(drawn: DataObject) -> None:
    """Longer ones than those of the contract: entries with many frames, some of which are trimmed."""
    anyio.run(_compare_tapes, drawn)


async def _compare_tapes(drawn: DataObject) -> None:
    clock = FakeClock()
    async with await make_sqlite_store(clock, StoreLimits()) as packed, MemoryStore(clock=clock) as plain:
        for store in (packed, plain):
            await store.create_session(new_session(clock))
        for _ in range(drawn.draw(integers(1, 15))):
            size = drawn.draw(integers(0, 2_000))
            frames = [
                new_frame(b"x" * (number % 7 * size), stream=f"t{number % 3}")
                for number in range(drawn.draw(integers(1, 300)))
            ]
            window = Window(
                drawn.draw(none() | integers(1, 400)), drawn.draw(none() | integers(0, 1_000_000))
            )
            get = methodcaller(
                "get_frames",
                "session-1",
                stream=drawn.draw(sampled_from([None, "t1"])),
                after=drawn.draw(integers(0, 3_000)),
                limit=drawn.draw(none() | integers(1, 300)),
            )
            for store in (packed, plain):
                await store.add_frames(frames, keep=window)
            assert await packed.get_frames("session-1") == await plain.get_frames("session-1")
            assert await get(packed) == await get(plain)
        assert await packed.delete_frames("session-1") == await plain.delete_frames("session-1")


# -- following --------------------------------------------------------------------------------------


async def test_a_follower_hears_of_its_own_process_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "_LOOK_EVERY", 3600.0)
    clock = FakeClock()
    found: list[bytes] = []
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))

        async def follow() -> None:
            async with aclosing(store.follow_frames("session-1")) as frames:
                async for frame in frames:
                    found.append(frame.envelope.raw)  # noqa: PERF401 - one by one is the point

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                for number in range(5):
                    await add_raws(store, b"%d" % number)
                    while len(found) <= number:
                        await anyio.lowlevel.checkpoint()
                await anyio.wait_all_tasks_blocked()
                await store.delete_session("session-1")
    assert found == [b"%d" % number for number in range(5)]


async def test_where_nobody_follows_a_write_interrupts_the_loop_but_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        interruptions: list[object] = []
        writer = store._running().writer
        monkeypatch.setattr(writer, "_call", spying(writer._call, interruptions))
        await add_raws(store, b"1")
        assert len(interruptions) == 1
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(take, store, 2))
                await anyio.wait_all_tasks_blocked()
                await add_raws(store, b"2")
    assert len(interruptions) >= 3


def spying(call: Callable[..., None], seen: list[object]) -> Callable[..., None]:
    def spy(callback: object, *args: object) -> None:
        seen.append(callback)
        call(callback, *args)

    return spy


async def test_a_follower_ends_when_its_session_expires_though_nobody_asks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_TIDY_EVERY", 3600.0)
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock, "long", ttl=1e6))
        await store.create_session(new_session(clock, "brief", ttl=60))
        tails = store._running().tails
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take, store, 1, "long")
                while tails._first_expiry < 1e6:
                    await anyio.lowlevel.checkpoint()
                async with anyio.create_task_group() as brief:
                    # Whoever comes later may end earlier.
                    brief.start_soon(take, store, 1, "brief")
                    while tails._first_expiry > clock() + 60:
                        await anyio.lowlevel.checkpoint()
                    clock.advance(60)
                tasks.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [None, "mine"])
async def test_a_follower_gets_all_of_a_long_tape(path: Path, stream: str | None) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        frames = [new_frame(b"%d" % n, stream="other" if n % 3 else "mine") for n in range(1_000)]
        await store.add_frames(frames)
        wanted = [frame for frame in frames if stream in (None, frame.stream)]
        with anyio.fail_after(5):
            assert raws(await take(store, len(wanted), stream=stream)) == raws(wanted)


async def test_a_follower_of_one_stream_rests_while_others_are_written(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteStore(path, clock=clock) as store:
        await store.create_session(new_session(clock))
        tails = store._running().tails
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(take, store, 1, stream="mine"))
                while not tails._followers:
                    await anyio.lowlevel.checkpoint()
                (follower,) = tails._followers[1]
                for seq in await add_raws(store, b"1", b"2", stream="other"):
                    while follower.after < seq:
                        await anyio.lowlevel.checkpoint()
                assert not follower.changed.is_set()
                tasks.cancel_scope.cancel()


async def test_one_question_for_all_who_follow_and_only_where_something_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "_LOOK_EVERY", 3600.0)
    clock = FakeClock()
    asked: list[str] = []
    async with SQLiteStore(path, clock=clock) as store, SQLiteStore(path, clock=clock) as other:
        for number in range(1, 21):
            await other.create_session(new_session(clock, f"s{number}"))
        threads = store._running()

        async def look() -> list[int]:
            asked.clear()
            return await threads.tapes.submit(threads.tails.look)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for number in range(1, 21):
                    tasks.start_soon(partial(take, store, 1, f"s{number}"))
                while len(threads.tails._followers) < 20:
                    await anyio.lowlevel.checkpoint()
                await threads.tapes.submit(lambda on: on.db.set_trace_callback(asked.append))
                assert (await look(), len(asked)) == ([], 2)
                assert (await look(), asked) == ([], ["PRAGMA data_version"])
                await add_raws(other, b"x", session_id="s7")
                assert (await look(), len(asked)) == ([7], 2)
                assert (await look(), asked) == ([], ["PRAGMA data_version"])
                assert threads.tails.interval() == 3600.0
                tasks.cancel_scope.cancel()
        assert threads.tails.interval() is None
