"""A client comes back to another replica than the one that reads its stream."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from shadowcat_stores import SessionStore, SQLiteStore, StoreUnavailable, StreamClaim
from tests.support.events import message
from tests.support.proxying import replica
from tests.support.told import Told, calling, claimed, detached, numbers, progress, recorded, resuming
from tests.support.upstream import ScriptedUpstream, result


@pytest.fixture
def stores(tmp_path: Path) -> list[SessionStore]:
    """The stores of two replicas."""
    return [SQLiteStore(tmp_path / "sessions.db") for _ in range(2)]


@pytest.mark.parametrize("ids", [False, True])
async def test_it_follows_the_stream_that_the_other_reads(
    upstream: ScriptedUpstream, stores: list[SessionStore], ids: bool
) -> None:
    with anyio.fail_after(10):
        async with (
            replica(upstream.url, stores[0]) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told(ids)
            async with calling(one) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
                await claimed(one)
            assert first is not None
            await detached(one)
            await told.send(2, progress(2))
            async with resuming(one.at(other), first.id) as events:
                assert numbers([await events.next()]) == [2]
                await told.send(3, progress(3))
                assert numbers([await events.next()]) == [3]
                await told.send(4, result("c-1", "done"))
                await told.streams[0].end_stream()
                assert numbers(await events.rest()) == ["done"]
    assert len(told.asked) == 1


async def test_who_listens_elsewhere_keeps_the_stream_open(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    settings = {"adopt_seconds": 1.5, "adopt_events": 2}
    with anyio.fail_after(15):
        async with (
            replica(upstream.url, stores[0], **settings) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told()
            async with calling(one) as events:
                await told.opened(1)
                await told.send(0, progress(0))
                first = await events.next()
                await claimed(one)
            assert first is not None
            await detached(one)
            async with resuming(one.at(other), first.id) as events:
                (stream,) = one.service.streams.all()
                for number in range(1, 6):  # more than are read ahead for nobody
                    await told.send(number, progress(number))
                    assert numbers([await events.next()]) == [number]
                deadline = stream._scope.deadline
                while stream._scope.deadline == deadline:  # it lives on
                    await anyio.lowlevel.checkpoint()
                await told.send(6, result("c-1", "done"))
                await told.streams[0].end_stream()
                assert numbers(await events.rest()) == ["done"]


async def test_a_dead_owner_s_stream_is_taken_over(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    with anyio.fail_after(10):
        async with (
            replica(upstream.url, stores[0]) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told(ids=True)
            told.resume = [(2, progress(2))]
            async with calling(one) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
                await claimed(one)
                await one.service.recorder.flush()
                assert first is not None
                # As kill -9 leaves it: the record runs out, the claim stands.
                one.service.owners._touch = _never  # type: ignore[method-assign]
                async with resuming(one.at(other), first.id) as taken:
                    assert numbers([await taken.next()]) == [2]
                    await told.send(3, result("c-1", "done"))
                    assert numbers(await taken.rest()) == ["done"]
    assert told.resumed_with == [b"e-1"]


async def test_a_dead_owner_s_stream_that_cannot_be_resumed_is_said_to_be_lost(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    with anyio.fail_after(10):
        async with (
            replica(upstream.url, stores[0]) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told()
            async with calling(one) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
                await claimed(one)
                await one.service.recorder.flush()
                assert first is not None
                one.service.owners._touch = _never  # type: ignore[method-assign]
                async with resuming(one.at(other), first.id) as taken:
                    (lost,) = await taken.rest()
    assert message(lost)["error"]["data"] == {"reason": "ambiguous_delivery"}


async def test_one_get_of_a_session_is_open_however_many_replicas(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    settings = {"adopt_seconds": 1.0}
    with anyio.fail_after(15):
        async with (
            replica(upstream.url, stores[0], **settings) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told()
            told.resume = []
            async with resuming(one, None):
                await told.opened(1)
                await claimed(one)
            async with resuming(one.at(other), None) as events:
                await told.send(1, progress(1))
                assert numbers([await events.next()]) == [1]
                assert len(told.asked) == 1
                # The one that reads it ends, and gives it to the one that is listened at.
                (stream,) = one.service.streams.all()
                stream.end()
                await told.opened(2)
                await told.send(2, progress(2))
                assert numbers([await events.next()]) == [2]
    assert len(told.asked) == 2


async def test_a_drained_replica_hands_its_streams_on(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    with anyio.fail_after(10):
        async with (
            replica(upstream.url, stores[0]) as one,
            replica(upstream.url, stores[1]) as other,
        ):
            await one.begin()
            upstream.script = told = Told(ids=True)
            told.resume = [(2, progress(2))]
            async with calling(one) as events:
                await told.opened(1)
                await told.send(1, progress(1))
                first = await events.next()
                await claimed(one)
                one.service.drain()
                last = await events.next()
                assert last is not None
                assert last.retry == 1000
                assert await events.next() is None
            assert first is not None
            async with resuming(one.at(other), first.id) as events:
                assert numbers([await events.next()]) == [2]
                await told.send(3, result("c-1", "done"))
                assert numbers(await events.rest()) == ["done"]
    assert len(told.resumed_with) == 1


async def test_a_replica_that_was_silent_claims_its_streams_again(
    upstream: ScriptedUpstream, stores: list[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(10):
        async with replica(upstream.url, stores[0]) as one:
            await one.begin()
            upstream.script = told = Told()
            async with calling(one) as events:
                await told.opened(1)
                await events.next()
                await claimed(one)
                was = one.service.owners.id
                await one.store.delete_session(f"~{was}")
                (stream,) = one.service.streams.all()
                token = stream.token
                while await one.store.get_session(f"~{was}") is None or not stream.token:
                    await anyio.lowlevel.checkpoint()
                assert stream.token == token  # nobody else had it meanwhile
                await told.send(1, progress(1))
                await recorded(one, 1)
                await told.send(2, result("c-1", "done"))
                await told.streams[0].end_stream()
                assert numbers(await events.rest())[-1] == "done"
            assert "silent for too long" in caplog.text
            assert stream.over.is_set


async def _never() -> None:
    await anyio.sleep_forever()


class Mute(SQLiteStore):
    """Takes the next claim of a stream, and does not say so."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.is_mute = False

    async def claim_stream(
        self, session_id: str, stream: str, *, owner: str, lease: float
    ) -> StreamClaim | None:
        claim = await super().claim_stream(session_id, stream, owner=owner, lease=lease)
        if self.is_mute:
            self.is_mute = False
            raise StoreUnavailable("no answer")
        return claim


async def test_a_claim_that_the_store_took_without_a_word_keeps_nobody_waiting(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    store = Mute(tmp_path / "sessions.db")
    with anyio.fail_after(10):
        async with (
            replica(upstream.url, store) as one,
            replica(upstream.url, SQLiteStore(tmp_path / "sessions.db")) as other,
        ):
            await one.begin()
            upstream.script = told = Told()
            told.resume = [(1, progress(1))]
            store.is_mute = True
            async with one.stream("GET") as response:
                assert response.status_code == 503
            async with resuming(one.at(other), None) as events:
                assert numbers([await events.next()]) == [1]


async def test_a_stream_is_claimed_as_soon_as_the_store_says_so(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    store = Mute(tmp_path / "sessions.db")
    with anyio.fail_after(10):
        async with replica(upstream.url, store) as one:
            await one.begin()
            upstream.script = told = Told()
            store.is_mute = True
            async with calling(one):
                await told.opened(1)
                await claimed(one)
                assert not store.is_mute


async def test_a_get_whose_client_left_while_it_was_claimed_keeps_nobody_waiting(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    claiming, go_on = anyio.Event(), anyio.Event()

    class Slow(SQLiteStore):
        async def claim_stream(
            self, session_id: str, stream: str, *, owner: str, lease: float
        ) -> StreamClaim | None:
            claim = await super().claim_stream(session_id, stream, owner=owner, lease=lease)
            claiming.set()
            await go_on.wait()
            return claim

    with anyio.fail_after(10):
        async with (
            replica(upstream.url, Slow(tmp_path / "sessions.db")) as one,
            replica(upstream.url, SQLiteStore(tmp_path / "sessions.db")) as other,
        ):
            await one.begin()
            upstream.script = told = Told()
            told.resume = [(1, progress(1))]
            async with anyio.create_task_group() as tasks:

                async def come() -> None:
                    async with one.stream("GET"):
                        pass

                tasks.start_soon(come)
                await claiming.wait()
                tasks.cancel_scope.cancel()
            while one.service.watches:
                await anyio.lowlevel.checkpoint()
            go_on.set()
            async with resuming(one.at(other), None) as events:
                assert numbers([await events.next()]) == [1]
