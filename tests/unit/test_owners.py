"""A replica's record: what it says of who lives, and where there is no room for it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from shadowcat.owners import Owners
from shadowcat_stores import MemoryStore, Session, SQLiteStore, StoreLimits


async def test_a_store_without_room_for_the_record_is_said_once_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(tmp_path / "sessions.db", limits=StoreLimits(sessions=1))
    create, tried = store.create_session, 0

    async def counted(session: Session) -> Session:
        nonlocal tried
        tried += 1
        return await create(session)

    async with store:
        now = store.clock()
        await store.create_session(Session(id="s", created_at=now, expires_at=now + 60))
        monkeypatch.setattr(store, "create_session", counted)
        owners = Owners(store, lease=0.02)
        with anyio.fail_after(5):
            async with owners.alive():
                while tried < 3:
                    await anyio.lowlevel.checkpoint()
                (warning,) = caplog.records
                assert "max_sessions" in warning.getMessage()
                assert not owners.id
                assert await owners.claim("s", "one") == 0
                # It cannot claim, but it can tell who is dead.
                await store.claim_stream("s", "one", owner="dead", lease=60)
                while await owners.other("s", "one") is not None:
                    await anyio.lowlevel.checkpoint()
                await store.delete_session("s")
                while not owners.id:
                    await anyio.lowlevel.checkpoint()
        assert len(caplog.records) == 1
        assert await store.count_sessions() == 0


async def test_a_store_that_nobody_shares_is_not_even_asked() -> None:
    owners = Owners(MemoryStore(), lease=0.02)  # not open: it refuses every call
    async with owners.alive():
        await owners.read_mail()
        assert await owners.other("s", "one") is None
        assert await owners.claim("s", "one") == 0
        await owners.release("s", "one", 0)


async def becomes(owners: Owners, *, alone: bool) -> None:
    while owners.is_alone() is not alone:
        await anyio.lowlevel.checkpoint()


async def test_a_replica_knows_whether_it_is_alone(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "sessions.db") as store:
        one, other = Owners(store, lease=0.4), Owners(store, lease=0.4)
        with anyio.fail_after(10):
            async with one.alive():
                assert not one.is_alone()
                await becomes(one, alone=True)
                async with other.alive():
                    # Before the newcomer serves anybody.
                    assert not one.is_alone()
                    assert not other.is_alone()
                await becomes(one, alone=True)
        assert await store.count_sessions() == 0


async def test_a_replica_that_goes_on_without_the_first_one_is_alone(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "sessions.db") as store:
        other = Owners(store, lease=0.4)
        with anyio.fail_after(10):
            async with AsyncExitStack() as stack:
                async with Owners(store, lease=0.4).alive():
                    await stack.enter_async_context(other.alive())
                await becomes(other, alone=True)


async def test_a_replica_for_whose_record_there_is_no_room_is_noticed(tmp_path: Path) -> None:
    async with (
        SQLiteStore(tmp_path / "sessions.db") as store,
        SQLiteStore(tmp_path / "sessions.db", limits=StoreLimits(sessions=2)) as full,
    ):
        one, other = Owners(store, lease=0.4), Owners(full, lease=0.4)
        with anyio.fail_after(10):
            async with one.alive():
                await becomes(one, alone=True)
                async with other.alive():
                    assert not one.is_alone()
                    assert not other.id


async def test_a_replica_whose_store_is_out_of_reach_does_not_take_itself_to_be_alone(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "sessions.db")
    owners = Owners(store, lease=0.4)
    with anyio.fail_after(10):
        async with store, owners.alive():
            await becomes(owners, alone=True)
            await store.aclose()
            await becomes(owners, alone=False)
            await store.open()
            await becomes(owners, alone=True)
