"""Files that earlier versions of `SQLiteStore` have made: what is in them is kept."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from shadowcat_stores import Frame, MessageEnvelope, SessionStore, SQLiteStore, Window, _packing
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import new_frame, new_session

VERSION_1 = Path(__file__).with_name("version_1.sql")
"""The dump of a file that was made with `fill` by the version before frames were packed."""


def frames(session_id: str) -> list[Frame]:
    """Frames of all kinds."""
    asked = MessageEnvelope(b'{"jsonrpc":"2.0","id":"a","method":"tools/call"}', "request", "tools/call", "a")
    progress = MessageEnvelope(b'{"jsonrpc":"2.0","method":"notifications/progress"}', "notification", "n/p")
    answered = MessageEnvelope(b'{"jsonrpc":"2.0","id":2.5,"result":{}}', "response", id=2.5)
    binary = MessageEnvelope(b"\xff\0", "other")
    return [
        Frame(session_id=session_id, direction="client", envelope=asked, at=1.5, stream="s-1"),
        Frame(
            session_id=session_id,
            direction="server",
            envelope=progress,
            at=2.25,
            stream="s-1",
            position=1,
            event="custom",
            event_id="e-1",
        ),
        Frame(session_id=session_id, direction="server", envelope=answered, at=3.0, stream="s-1", position=2),
        Frame(session_id=session_id, direction="server", envelope=binary, at=4.0),
    ]


async def fill(store: SessionStore, clock: FakeClock) -> None:
    for session_id in ("trimmed", "short", "empty", "deleted", "cleared"):
        await store.create_session(new_session(clock, session_id, ttl=600, labels={"of": session_id}))
    for _ in range(4):
        await store.add_frames(frames("trimmed"), keep=Window(frames=10))
    await store.add_frames([*frames("short"), *frames("deleted"), *frames("cleared")])
    claim = await store.claim_stream("short", "s-2", owner="somebody", lease=300)
    assert claim is not None
    await store.add_frame(new_frame(session_id="short", stream="s-2", token=claim.token))
    await store.store_last_event_id("short", "e-9")
    await store.delete_session("deleted")
    await store.delete_frames("cleared")


@pytest.mark.parametrize("entry_frames", [3, 128])
async def test_a_file_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry_frames: int
) -> None:
    monkeypatch.setattr(_packing, "ENTRY_FRAMES", entry_frames)
    clock = FakeClock()
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as db:
        db.executescript(VERSION_1.read_text())
    async with (
        SQLiteStore(tmp_path / "old.db", clock=clock) as old,
        SQLiteStore(tmp_path / "new.db", clock=clock) as new,
    ):
        await fill(new, clock)
        assert (await old.list_sessions()).sessions == (await new.list_sessions()).sessions
        assert await old.count_sessions() == 4
        # What comes after is as in a file of today, too.
        for window in (None, Window(frames=9), Window(bytes=100)):
            for session_id in ("trimmed", "short", "empty", "cleared"):
                assert await old.get_frames(session_id) == await new.get_frames(session_id)
                for store in (old, new):
                    await store.add_frame(new_frame(session_id=session_id), keep=window)
        assert await old.get_frames("trimmed") == await new.get_frames("trimmed")
        assert [frame.seq for frame in await old.get_frames("trimmed")] == [14, 15, 16, 17, 18, 19]
        assert await old.get_last_event_id("short") == "e-9"
        assert await old.get_last_event_id("short", stream="s-1") == "e-1"
        assert await old.get_stream_claim("short", "s-2") == await new.get_stream_claim("short", "s-2")
        assert await old.get_stream_claim("short", "s-2") is not None
        # Of the session that was deleted nothing is left.
        rows = await old._read(lambda on: on.db.execute("SELECT DISTINCT session FROM entries").fetchall())
        assert sorted(rows) == [(1,), (2,), (3,), (5,)]
