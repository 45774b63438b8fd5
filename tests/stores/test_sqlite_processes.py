"""Several processes on one file of a `SQLiteStore`, and what is left of one that is killed."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from shadowcat_stores import Session, SQLiteStore, StoreLimits
from shadowcat_stores.testing.harness import add_raws, list_all, new_frame, raws, seqs, take

_IMPORTS = """
import sys, time
from contextlib import aclosing
import anyio
from shadowcat_stores import Frame, MessageEnvelope, Session, SQLiteStore, StoreError, StoreLimits

def say(text):
    print(text, flush=True)

def session(id):
    return Session(id=id, created_at=time.time(), expires_at=time.time() + 600)

def frame(id, raw):
    return Frame(session_id=id, direction="server", envelope=MessageEnvelope(raw, "request"), at=1.0)
"""

FOLLOW = """
async def main(path):
    async with SQLiteStore(path) as store:
        say(f"sees {(await store.get_session('ours')).principal}")
        async with aclosing(store.follow_frames("ours")) as frames:
            async for each in frames:
                say(f"followed {each.envelope.raw.decode()}")
        say(f"ended, {await store.get_session('ours')}")
        await store.create_session(session("theirs"))
        await store.add_frames([frame("theirs", b"1"), frame("theirs", b"2")])
        say("created")
        sys.stdin.read()
"""

LOAD = """
async def main(path):
    async with SQLiteStore(path, limits=StoreLimits(sessions=60)) as store:
        say("ready")
        sys.stdin.readline()

        async def write(n):
            for k in range(20):
                try:
                    await store.create_session(session(f"s{n}-{k}"))
                except StoreError as error:
                    say(type(error).__name__)
                else:
                    say("created")
                seq = await store.add_frame(frame("shared", f"{n}".encode()))
                say(f"seq {seq}")

        async with anyio.create_task_group() as tasks:
            for n in range(4):
                tasks.start_soon(write, n)
"""

WRITE_FOR_EVER = """
async def main(path):
    async with SQLiteStore(path) as store:
        begun = time.time_ns()

        async def write(n):
            k = 0
            while True:
                id = f"{begun}-{n}-{k}"
                await store.create_session(session(id))
                say(f"created {id}")
                await store.add_frames([frame(id, b"x" * 300)] * 3)
                await store.delete_session(f"{begun}-{n}-{k - 5}")
                say(f"filled {id}")
                k += 1

        async with anyio.create_task_group() as tasks:
            for n in range(4):
                tasks.start_soon(write, n)
"""


CREATE = """
async def main(path):
    async with SQLiteStore(path) as store:
        say("ready")
        for name in sys.stdin:
            await store.create_session(session(name.strip()))
            await store.add_frames([frame(name.strip(), b"x" * 300)] * 20)
            say(f"created {name.strip()}")
"""


class Child:
    """Another process, line by line."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)

    async def line(self) -> str:
        return (await self._stdout.receive_until(b"\n", 1000)).decode()

    async def rest(self) -> list[str]:
        """Return the whole lines that are still to come until the process ends."""
        lines = []
        try:
            while True:
                lines.append(await self.line())
        except (anyio.EndOfStream, anyio.IncompleteRead):
            return lines


@asynccontextmanager
async def child(code: str, path: Path) -> AsyncIterator[Child]:
    program = f"{_IMPORTS}{code}\nanyio.run(main, sys.argv[1])"
    command = [sys.executable, "-c", program, str(path)]
    with anyio.fail_after(20):
        process = await anyio.open_process(command, stdin=subprocess.PIPE, stderr=sys.stderr)
        try:
            async with process:
                yield Child(process)
        finally:
            if process.returncode is None:
                process.kill()


def session(session_id: str, principal: str = "") -> Session:
    now = time.time()
    return Session(id=session_id, created_at=now, expires_at=now + 600, principal=principal)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


async def test_two_processes_see_and_follow_each_other(path: Path) -> None:
    async with SQLiteStore(path) as store:
        await store.create_session(session("ours", principal="us"))
        async with child(FOLLOW, path) as other:
            assert await other.line() == "sees us"
            for number in range(5):
                await add_raws(store, b"%d" % number, session_id="ours")
                assert await other.line() == f"followed {number}"
            await store.delete_session("ours")
            assert await other.line() == "ended, None"
            assert await other.line() == "created"
            assert [each.id for each in await list_all(store)] == ["theirs"]
            assert raws(await take(store, 2, "theirs")) == [b"1", b"2"]
            async with aclosing(store.follow_frames("theirs", after=2)) as frames:
                await store.add_frame(new_frame(b"3", "theirs"))
                assert (await anext(frames)).seq == 3
            await other.stdin.aclose()
            assert await other.process.wait() == 0


async def test_processes_share_one_tape_one_id_and_one_limit(path: Path) -> None:
    async with SQLiteStore(path, limits=StoreLimits(sessions=60)) as store, AsyncExitStack() as stack:
        await store.create_session(session("shared"))
        others = [await stack.enter_async_context(child(LOAD, path)) for _ in range(2)]
        for other in others:
            assert await other.line() == "ready"
        for other in others:
            await other.stdin.send(b"\n")
        lines = [line for other in others for line in await other.rest()]
        # Each tries the same 80 ids; with the shared one there is room for 59.
        assert lines.count("created") == 59
        assert await store.count_sessions() == len(await list_all(store)) == 60
        found = await store.get_frames("shared")
        assert seqs(found) == list(range(1, 161))
        told = [int(line.removeprefix("seq ")) for line in lines if line.startswith("seq ")]
        assert sorted(told) == seqs(found)


async def test_processes_whose_file_is_replaced_meet_again_in_the_new_one(path: Path) -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(child(CREATE, path)) for _ in range(3)]
        for other in others:
            assert await other.line() == "ready"

        async def create(name: str) -> list[str]:
            names = [f"{name}-{number}" for number in range(3)]
            for each, other in zip(names, others, strict=True):
                await other.stdin.send(f"{each}\n".encode())
                assert await other.line() == f"created {each}"
            return names

        kept = await create("kept")
        backup = path.with_name("backup")
        with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(backup)) as copy:
            db.backup(copy)
        await create("lost")
        backup.rename(path)
        kept += await create("new")
        async with SQLiteStore(path) as store:
            assert [each.id for each in await list_all(store)] == kept
            for each in kept:
                assert seqs(await store.get_frames(each)) == list(range(1, 21))
        for other in others:
            await other.stdin.aclose()
            assert await other.process.wait() == 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_process_that_is_killed_loses_nothing_that_it_acknowledged(path: Path) -> None:
    for lines_before in (1, 50, 200, 333):
        async with child(WRITE_FOR_EVER, path) as other:
            told = [await other.line() for _ in range(lines_before)]
            other.process.send_signal(signal.SIGKILL)
            told += await other.rest()
            assert await other.process.wait() == -signal.SIGKILL
        created = [line.removeprefix("created ") for line in told if line.startswith("created ")]
        filled = [line.removeprefix("filled ") for line in told if line.startswith("filled ")]
        async with SQLiteStore(path) as store:
            for writer in range(4):
                # The latest five are there, whole; an older one has been deleted by then.
                ids = [each for each in created if each.split("-")[1] == str(writer)]
                for session_id in ids[-5:]:
                    assert await store.get_session(session_id) is not None
                    frames = await store.get_frames(session_id)
                    assert seqs(frames) == [1, 2, 3] or (frames == [] and session_id not in filled)
                for session_id in ids[:-6]:
                    assert await store.get_session(session_id) is None
            assert await store.count_sessions() == len(await list_all(store))
            for each in await list_all(store):
                await store.delete_session(each.id)
