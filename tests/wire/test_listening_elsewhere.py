"""Replicas tell each other who listens to the streams that they read, and who has cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from shadowcat.mail import Cancel, Leave, Listen, Mail
from shadowcat_stores import Frame, MessageEnvelope, SessionStore, StoreUnavailable
from tests.support.events import Events
from tests.support.proxying import Proxied, replica
from tests.support.told import Told, calling, cancelled, claimed, detached, numbers, progress, resuming
from tests.support.upstream import ScriptedUpstream, result

SQLITE = pytest.mark.parametrize("stores", ["sqlite"], indirect=True)
"""What no store changes."""


@asynccontextmanager
async def replicas(
    upstream: ScriptedUpstream, stores: Sequence[SessionStore], **settings: Any
) -> AsyncIterator[list[Proxied]]:
    """The replicas, each as the client of one session sees it. None dies of a machine that is busy."""
    settings = {"replica_lease": 2.0, **settings}
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(replica(upstream.url, store, **settings)) for store in stores
        ]
        await running[0].begin()
        yield [running[0], *(running[0].at(each) for each in running[1:])]


@asynccontextmanager
async def called(proxy: Proxied, told: Told) -> AsyncIterator[tuple[Events, str]]:
    """A call that has had one event, and whose stream others know the reader of; the event's id."""
    async with calling(proxy) as events:
        await told.opened(1)
        await told.send(1, progress(1))
        first = await events.next()
        assert first is not None
        assert first.id is not None
        await claimed(proxy)
        yield events, first.id


async def left(proxy: Proxied, told: Told) -> str:
    """Leave such a call; return the id of its one event."""
    async with called(proxy, told) as (_, first):
        pass
    await detached(proxy)
    return first


async def done(told: Told) -> None:
    await told.send(9, result("c-1", "done"))
    await told.streams[0].end_stream()


async def cancel(proxy: Proxied, request_id: str = "c-1") -> None:
    assert (await proxy.post(cancelled(request_id))).status_code == 202


def heard(proxy: Proxied, monkeypatch: pytest.MonkeyPatch) -> list[Mail]:
    """Return what the replica is told from now on."""
    letters: list[Mail] = []
    read_mail = proxy.service.owners.on_mail

    def note(mail: Mail) -> None:
        letters.append(mail)
        read_mail(mail)

    monkeypatch.setattr(proxy.service.owners, "on_mail", note)
    return letters


# -- the newer takes over ----------------------------------------------------------------------------------


async def test_a_newer_one_elsewhere_takes_over_from_the_first(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.live_responses._TELL_AGAIN", 60.0)
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            async with called(at[0], told) as (older, first), resuming(at[1], first) as newer:
                assert await older.next() is None
                await told.send(2, progress(2))
                assert numbers([await newer.next()]) == [2]
                await done(told)
                assert numbers(await newer.rest()) == ["done"]
    assert len(told.asked) == 1


@pytest.mark.parametrize(("older_at", "newer_at"), [(1, 0), (1, 1), (1, 2)])
async def test_a_newer_one_takes_over_from_one_elsewhere(
    upstream: ScriptedUpstream,
    stores: list[SessionStore],
    monkeypatch: pytest.MonkeyPatch,
    older_at: int,
    newer_at: int,
) -> None:
    monkeypatch.setattr("shadowcat.live_responses._TELL_AGAIN", 60.0)
    with anyio.fail_after(10):
        async with replicas(upstream, stores) as at:
            upstream.script = told = Told()
            first = await left(at[0], told)
            async with resuming(at[older_at], first) as older:
                await told.send(2, progress(2))
                assert numbers([await older.next()]) == [2]
                async with resuming(at[newer_at], first) as newer:
                    assert numbers([await newer.next()]) == [2]
                    assert await older.next() is None
                    await told.send(3, progress(3))
                    assert numbers([await newer.next()]) == [3]
                    await done(told)
                    assert numbers(await newer.rest()) == ["done"]
    assert len(told.asked) == 1


@SQLITE
async def test_an_older_one_that_comes_late_is_the_one_that_ends(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks say which is the older one, whoever is heard of first."""
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            first = await left(at[0], told)
            async with resuming(at[1], first) as newer:
                await told.send(2, progress(2))
                assert numbers([await newer.next()]) == [2]
                for each in at:
                    with monkeypatch.context() as patch:
                        patch.setattr("shadowcat.listener.time.time", lambda: 1.0)
                        async with resuming(each, first) as older:
                            assert numbers(await older.rest()) in ([], [2])
                await told.send(3, progress(3))
                assert numbers([await newer.next()]) == [3]
                async with resuming(at[0], first) as local:
                    assert numbers([await local.next(), await local.next()]) == [2, 3]
                    assert await newer.next() is None
                    with monkeypatch.context() as patch:
                        patch.setattr("shadowcat.listener.time.time", lambda: 1.0)
                        async with resuming(at[1], first) as older:
                            assert numbers(await older.rest()) == [2, 3]
                    await done(told)
                    assert numbers(await local.rest()) == ["done"]


@SQLITE
async def test_lost_mail_is_said_again(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            lost: list[str] = []
            for each in at:
                store, add_frame = each.store, each.store.add_frame

                async def lose_the_first(
                    frame: Frame, add_frame: Any = add_frame, store: Any = store, **options: Any
                ) -> int:
                    monkeypatch.setattr(store, "add_frame", add_frame)
                    lost.append(frame.session_id)
                    raise StoreUnavailable("away")

                monkeypatch.setattr(store, "add_frame", lose_the_first)
            async with called(at[0], told) as (older, first), resuming(at[1], first) as newer:
                assert await older.next() is None
                async with resuming(at[0], first) as newest:
                    assert await newer.next() is None
                    await done(told)
                    assert numbers(await newest.rest()) == ["done"]
            assert lost == [f"~{each.service.owners.id}" for each in at]


@SQLITE
async def test_a_replica_that_lost_its_record_goes_on_reading_its_mail(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            letters = heard(at[0], monkeypatch)
            owners = at[0].service.owners
            record = f"~{owners.id}"
            for number in range(20):
                await owners.send(owners.id, Leave(str(number)))
            while len(letters) < 20:
                await anyio.lowlevel.checkpoint()
            await at[0].store.delete_session(record)
            while await at[0].store.get_session(record) is None:
                await anyio.lowlevel.checkpoint()
            nonsense = Frame(
                session_id=record, direction="client", envelope=MessageEnvelope(b"?", "other"), at=0
            )
            await at[0].store.add_frame(nonsense)
            async with called(at[0], told) as (older, first), resuming(at[1], first) as newer:
                assert await older.next() is None
                await done(told)
                assert numbers(await newer.rest()) == ["done"]
    assert isinstance(letters[20], Listen)
    assert len(letters) < 24


@SQLITE
async def test_one_who_takes_much_says_so_before_the_reader_waits(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.live_responses._TELL_AGAIN", 60.0)
    monkeypatch.setattr("shadowcat.live_responses.LISTENING", 120.0)
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2], adopt_events=4) as at:
            upstream.script = told = Told()
            first = await left(at[0], told)
            async with resuming(at[1], first) as events:
                for number in range(2, 16):
                    await told.send(number, progress(number))
                    assert numbers([await events.next()]) == [number]
                await done(told)
                assert numbers(await events.rest()) == ["done"]


@SQLITE
async def test_the_get_stream_goes_on_from_where_one_elsewhere_is(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.live.LISTENING", 1.0)
    monkeypatch.setattr("shadowcat.live_responses.LISTENING", 1.0)
    with anyio.fail_after(15):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            told.resume = []
            async with resuming(at[0], None):
                await told.opened(1)
                await claimed(at[0])
            await detached(at[0])
            (stream,) = at[0].service.streams.all()
            async with resuming(at[1], None) as older:
                await told.send(1, progress(1))
                first = await older.next()
                assert first is not None
                while stream.left_at != first.id:
                    await anyio.lowlevel.checkpoint()
                async with resuming(at[0], None) as newer:  # it gets what that one has not got
                    assert await older.next() is None
                    await told.send(2, progress(2))
                    assert numbers([await newer.next()]) == [2]
            await detached(at[0])
            await at[0].tape()
            async with resuming(at[1], None) as older:
                await told.send(3, progress(3))
                third = await older.next()
                assert third is not None
                while stream.left_at != third.id:
                    await anyio.lowlevel.checkpoint()
            while stream.is_followed:
                await anyio.lowlevel.checkpoint()
            await told.send(4, progress(4))
            async with resuming(at[0], None) as newest:  # it gets what nobody got
                assert numbers([await newest.next()]) == [4]
    assert len(told.streams) == 1


# -- who has cancelled -------------------------------------------------------------------------------------


async def test_a_request_that_is_cancelled_elsewhere_ends_where_it_is_read(
    upstream: ScriptedUpstream, stores: list[SessionStore]
) -> None:
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            await left(at[0], told)
            await cancel(at[1], "another")
            await cancel(at[1])
            with anyio.fail_after(2):
                await told.left.wait()
            while len(at[0].service.streams):
                await anyio.lowlevel.checkpoint()


@SQLITE
async def test_a_cancel_that_comes_before_the_claim_is_looked_for_once_more(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            asked = anyio.Event()
            owners = at[1].service.owners
            other = owners.other

            async def unknown(*args: str) -> None:
                monkeypatch.setattr(owners, "other", other)
                asked.set()

            monkeypatch.setattr(owners, "other", unknown)
            await left(at[0], told)
            await cancel(at[1])
            await asked.wait()
            await told.left.wait()


@SQLITE
async def test_a_request_that_is_cancelled_goes_on_for_who_listens_elsewhere(
    upstream: ScriptedUpstream, stores: list[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.live.LISTENING", 1.0)
    monkeypatch.setattr("shadowcat.live_responses.LISTENING", 1.0)
    with anyio.fail_after(10):
        async with replicas(upstream, stores[:2]) as at:
            upstream.script = told = Told()
            letters = heard(at[0], monkeypatch)
            first = await left(at[0], told)
            (stream,) = at[0].service.streams.all()
            async with resuming(at[1], first) as events:
                while not stream.is_followed:
                    await anyio.lowlevel.checkpoint()
                await cancel(at[1])
                while not any(isinstance(each, Cancel) for each in letters):
                    await anyio.lowlevel.checkpoint()
                said = len(letters)
                while len(letters) < said + 3:  # longer than `LISTENING`
                    await anyio.lowlevel.checkpoint()
                await told.send(2, progress(2))
                assert numbers([await events.next()]) == [2]
            await told.left.wait()  # not `adopt_seconds` later
