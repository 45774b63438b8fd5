"""Clauses about a store as such: 8, 9 and 10."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import StoreUnavailable
from shadowcat_stores.records import StoreLimits
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import (
    ContractBase,
    add_raws,
    clause,
    list_all,
    new_frame,
    new_session,
    raws,
    seqs,
    take,
)
from shadowcat_stores.testing.verbs import VERBS, answer

_MOST_STEPS = 100


async def cancelled_at_each_step(call: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Yield after each of many calls, cancelled one step of the event loop later every time.

    Ends after a call that was done before it could be cancelled.
    """
    for steps in range(_MOST_STEPS):
        scope = anyio.CancelScope()
        done = anyio.Event()

        async def run(scope: anyio.CancelScope = scope, done: anyio.Event = done) -> None:
            with scope:
                await call()
                done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        yield
        if done.is_set():
            return


class LifeClauses(ContractBase):
    """The tests of the clauses about a store as such."""

    # -- 8. only StoreError -------------------------------------------------------------------------

    @clause(8)
    @pytest.mark.parametrize("session_id", ["nobody", "' OR 1=1 --", "*", "{}%s%", "a:b\\", "~" * 2000])
    async def test_every_verb_knows_what_to_say_of_an_unknown_session(
        self, store: SessionStore, clock: FakeClock, session_id: str
    ) -> None:
        for verb in VERBS:
            assert (verb.name, await answer(verb, store, session_id)) == (verb.name, verb.absent)

    @clause(8)
    async def test_unknown_streams_are_no_error(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        assert await store.get_frames("session-1", stream="?", after=9) == []
        assert await store.get_last_event_id("session-1", stream="?") is None
        assert await store.get_stream_claim("session-1", "?") is None
        assert await store.release_stream("session-1", "?", token=1) is False

    @clause(8)
    @pytest.mark.parametrize("cursor", ["", "no cursor", "-1", "²", "\0", "'", "é"])
    async def test_a_malformed_cursor_is_a_value_error(
        self, store: SessionStore, clock: FakeClock, cursor: str
    ) -> None:
        await store.create_session(new_session(clock))
        with pytest.raises(ValueError, match="cursor"):
            await store.list_sessions(cursor=cursor)

    @clause(8)
    @pytest.mark.parametrize("limit", [0, -1])
    async def test_a_limit_below_one_is_a_value_error(
        self, store: SessionStore, clock: FakeClock, limit: int
    ) -> None:
        await store.create_session(new_session(clock))
        with pytest.raises(ValueError, match="limit"):
            await store.list_sessions(limit=limit)
        with pytest.raises(ValueError, match="limit"):
            await store.get_frames("session-1", limit=limit)

    # -- 9. cancelling ------------------------------------------------------------------------------

    @clause(9)
    async def test_a_cancelled_frame_is_stored_whole_or_not_at_all(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        number = 0

        async def add() -> None:
            nonlocal number
            number += 1
            await store.add_frame(new_frame(stream="t", event_id=f"e{number}"))

        async for _ in cancelled_at_each_step(add):
            await self._assert_tape_is_whole(store)

    @clause(9)
    async def test_a_cancelled_batch_stores_each_frame_whole_or_not_at_all(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        number = 0

        async def add() -> None:
            nonlocal number
            number += 3
            await store.add_frames([new_frame(stream="t", event_id=f"e{number + n}") for n in range(3)])

        async for _ in cancelled_at_each_step(add):
            await self._assert_tape_is_whole(store)

    async def _assert_tape_is_whole(self, store: SessionStore) -> None:
        # Added after the cancelled one: it finds the numbering and the store itself in order.
        await store.add_frame(new_frame(b"probe"))
        last_event_id = await store.get_last_event_id("session-1", stream="t")
        found = await store.get_frames("session-1")
        assert seqs(found) == list(range(1, len(found) + 1))
        event_ids = [frame.event_id for frame in found if frame.event_id is not None]
        assert last_event_id == (event_ids[-1] if event_ids else None)

    @clause(9)
    async def test_a_cancelled_create_leaves_a_session_or_none(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        number = 0

        async def create() -> None:
            nonlocal number
            number += 1
            await store.create_session(new_session(clock, f"s{number}"))

        async for _ in cancelled_at_each_step(create):
            session = await store.get_session(f"s{number}")
            assert session is None or session.revision == 1
            if session is None and number > 0:
                await store.create_session(new_session(clock, f"s{number}"))
            listed = await list_all(store)
            assert await store.count_sessions() == len(listed)
            assert [each.id for each in listed] == [f"s{n}" for n in range(1, number + 1)]

    @clause(9)
    async def test_a_cancelled_update_took_effect_or_did_not(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        before = await store.create_session(new_session(clock, labels={"n": "0"}))

        async def update() -> None:
            n = before.revision
            await store.update_session(replace(before, principal=f"p{n}", labels={"n": f"{n}"}))

        async for _ in cancelled_at_each_step(update):
            n = before.revision
            after = await store.get_session("session-1")
            updated = replace(before, principal=f"p{n}", labels={"n": f"{n}"}, revision=n + 1)
            assert after in (before, updated)
            assert after is not None
            before = await store.update_session(after)

    @clause(9)
    async def test_a_cancelled_delete_takes_all_or_nothing(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await add_raws(store, b"1", b"2", stream="t", event_id="e")

        async def delete() -> None:
            await store.delete_session("session-1")

        async for _ in cancelled_at_each_step(delete):
            lives = await store.get_session("session-1") is not None
            assert raws(await store.get_frames("session-1")) == ([b"1", b"2"] if lives else [])
            assert await store.get_last_event_id("session-1", stream="t") == ("e" if lives else None)
            assert await store.count_sessions() == int(lives)
            if not lives:
                await store.create_session(new_session(clock))
                assert await add_raws(store, b"1", b"2", stream="t", event_id="e") == [1, 2]

    @clause(9)
    async def test_a_cancelled_claim_is_one_or_none(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))

        async def claim() -> None:
            await store.claim_stream("session-1", "t", owner="a", lease=30.0)

        async for _ in cancelled_at_each_step(claim):
            found = await store.get_stream_claim("session-1", "t")
            other = await store.claim_stream("session-1", "t", owner="b", lease=30.0)
            assert (other is None) == (found is not None)
            for each in (found, other):
                if each is not None:
                    assert await store.release_stream("session-1", "t", token=each.token) is True

    # -- 10. open and close -------------------------------------------------------------------------

    @clause(10)
    async def test_opening_an_open_store_changes_nothing(self, clock: FakeClock) -> None:
        store = await self.make_store(clock, StoreLimits())
        assert store.is_open is False
        await store.open()
        stored = await store.create_session(new_session(clock))
        await store.open()
        assert store.is_open is True
        assert await store.get_session("session-1") == stored
        await store.aclose()
        await store.aclose()
        assert store.is_open is False

    @clause(10)
    async def test_a_store_whose_opening_was_cancelled_can_be_opened(self, clock: FakeClock) -> None:
        stores = [await self.make_store(clock, StoreLimits())]
        async for _ in cancelled_at_each_step(lambda: stores[-1].open()):
            store = stores[-1]
            if not store.is_open:
                await self._assert_unavailable(store)
            async with store:
                created = await store.create_session(new_session(clock, f"s{len(stores)}"))
                assert await store.get_session(created.id) == created
            assert store.is_open is False
            stores.append(await self.make_store(clock, StoreLimits()))

    @clause(10)
    async def test_what_was_stored_is_there_when_a_closed_store_is_opened_again(
        self, clock: FakeClock
    ) -> None:
        store = await self.make_store(clock, StoreLimits())
        async with store:
            stored = await store.create_session(new_session(clock))
            await add_raws(store, b"1", stream="t", event_id="e")
        async with store:
            await store.ping()
            assert await store.get_session("session-1") == stored
            assert raws(await store.get_frames("session-1")) == [b"1"]
            assert await add_raws(store, b"2") == [2]

    @clause(10)
    async def test_a_store_that_is_not_open_is_unavailable(self, clock: FakeClock) -> None:
        store = await self.make_store(clock, StoreLimits())
        await self._assert_unavailable(store)
        async with store:
            await store.create_session(new_session(clock))
        await self._assert_unavailable(store)

    async def _assert_unavailable(self, store: SessionStore) -> None:
        for verb in VERBS:
            assert (verb.name, await answer(verb, store, "session-1")) == (verb.name, StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await store.ping()

    @clause(10)
    async def test_closing_ends_what_follows(self, clock: FakeClock) -> None:
        store = await self.make_store(clock, StoreLimits())
        ended: list[type[Exception]] = []
        started = anyio.Event()

        async def follow() -> None:
            async with aclosing(store.follow_frames("session-1")) as frames:
                await anext(frames)
                started.set()
                with pytest.raises(StoreUnavailable) as raised:
                    await anext(frames)
                ended.append(raised.type)

        async with store:
            await store.create_session(new_session(clock))
            await add_raws(store, b"1")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await started.wait()
                await store.aclose()
        assert ended == [StoreUnavailable]
        async with store:
            assert raws(await take(store, 1)) == [b"1"]
            await store.delete_session("session-1")
