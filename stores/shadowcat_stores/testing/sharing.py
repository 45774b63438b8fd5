"""Clause 11: two store objects on one backend see each other's changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TypeAlias

import anyio
import pytest
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import SessionConflict, SessionExists, StoreFull
from shadowcat_stores.records import Session, StoreLimits
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import (
    ContractBase,
    add_raws,
    clause,
    list_all,
    new_session,
    raws,
    seqs,
    take,
    together,
)

Pair: TypeAlias = tuple[SessionStore, SessionStore]


class SharingClause(ContractBase):
    """The tests of the clause about shared backends; a store that is not shared skips them."""

    @pytest.fixture
    async def pair(self, clock: FakeClock) -> AsyncIterator[Pair]:
        """Return two open stores on one backend."""
        limits = StoreLimits(sessions=10)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(await self.make_store(clock, limits))
            if not first.shared:
                pytest.skip("the store is not shared: clause 11 does not apply")
            yield first, await stack.enter_async_context(await self.make_store(clock, limits))

    @clause(11)
    async def test_each_sees_the_others_sessions(self, pair: Pair, clock: FakeClock) -> None:
        one, other = pair
        created = await one.create_session(new_session(clock))
        # Each reads the record before the other changes it: what was read once must not stick.
        for store in pair:
            assert await store.get_session("session-1") == created
        with pytest.raises(SessionExists):
            await other.create_session(new_session(clock))
        updated = await other.update_session(replace(created, principal="p"))
        for store in pair:
            assert await store.get_session("session-1") == updated
        with pytest.raises(SessionConflict):
            await one.update_session(created)
        await one.touch_session("session-1", clock() + 600)
        for store in pair:
            assert await store.get_session("session-1") == replace(updated, expires_at=clock() + 600)
        assert await list_all(other) == await list_all(one)
        assert await other.delete_session("session-1") is True
        assert await one.get_session("session-1") is None
        assert await one.count_sessions() == 0

    @clause(11)
    async def test_one_winner_and_one_bound_over_both(self, pair: Pair, clock: FakeClock) -> None:
        records = [new_session(clock, f"s{number // 2}") for number in range(30)]
        calls = [partial(pair[n % 2].create_session, record) for n, record in enumerate(records)]
        answers = await together(calls)
        stored = {each.id for each in answers if isinstance(each, Session)}
        assert len([each for each in answers if isinstance(each, Session)]) == 10
        assert {type(each) for each in answers} == {Session, SessionExists, StoreFull}
        assert {each.id for each in await list_all(pair[1])} == stored

    @clause(11)
    async def test_both_write_one_tape(self, pair: Pair, clock: FakeClock) -> None:
        await pair[0].create_session(new_session(clock))
        writers = [partial(add_raws, pair[n % 2], *[b"%d" % n] * 10) for n in range(10)]
        await together(writers)
        found = await pair[0].get_frames("session-1")
        assert seqs(found) == list(range(1, 101))
        assert await pair[1].get_frames("session-1") == found
        assert await pair[1].delete_frames("session-1") == 100
        assert await add_raws(pair[0], b"next") == [101]

    @clause(11)
    async def test_one_follows_what_the_other_writes(self, pair: Pair, clock: FakeClock) -> None:
        one, other = pair
        await one.create_session(new_session(clock))
        found: list[bytes] = []
        took_all = anyio.Event()

        async def follow() -> None:
            found.extend(raws(await take(one, 10)))
            took_all.set()
            async with aclosing(one.follow_frames("session-1", after=10)) as frames:
                found.extend([frame.envelope.raw async for frame in frames])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            for number in range(10):
                await add_raws(other, b"%d" % number)
            await took_all.wait()
            await other.delete_session("session-1")
        assert found == [b"%d" % number for number in range(10)]

    @clause(11)
    async def test_claims_and_last_event_ids_hold_for_both(self, pair: Pair, clock: FakeClock) -> None:
        one, other = pair
        await one.create_session(new_session(clock))
        claim = await one.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert claim is not None
        assert await other.claim_stream("session-1", "t", owner="b", lease=30.0) is None
        assert await other.get_stream_claim("session-1", "t") == claim
        clock.advance(30)
        assert await other.claim_stream("session-1", "t", owner="b", lease=30.0) is not None
        assert await add_raws(one, b"stale", stream="t", token=claim.token) == [0]
        await other.store_last_event_id("session-1", "e", stream="t")
        assert await one.get_last_event_id("session-1", stream="t") == "e"

    @clause(11)
    async def test_closing_one_leaves_the_other_open(self, pair: Pair, clock: FakeClock) -> None:
        one, other = pair
        stored = await one.create_session(new_session(clock))
        await one.aclose()
        assert await other.get_session("session-1") == stored
        await one.open()
        assert await one.get_session("session-1") == stored
