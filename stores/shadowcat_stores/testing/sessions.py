"""Clauses about session records: 1, 2, 4, 5, 7 and 13."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import SessionConflict, SessionExists, SessionNotFound
from shadowcat_stores.records import Session, StoreLimits
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import (
    ContractBase,
    add_raws,
    clause,
    list_all,
    new_frame,
    new_session,
    raws,
    relabel,
    together,
)
from shadowcat_stores.testing.verbs import VERBS, answer


class SessionClauses(ContractBase):
    """The tests of the clauses about session records."""

    # -- 1. one winner ------------------------------------------------------------------------------

    @clause(1)
    async def test_one_of_many_concurrent_creates_wins(self, store: SessionStore, clock: FakeClock) -> None:
        records = [new_session(clock, principal=f"p{number}") for number in range(20)]
        answers = await together([partial(store.create_session, record) for record in records])
        winners = [each for each in answers if isinstance(each, Session)]
        losers = [each for each in answers if isinstance(each, SessionExists)]
        assert (len(winners), len(losers)) == (1, 19)
        assert await store.get_session("session-1") == winners[0]
        assert await store.count_sessions() == 1

    @clause(1)
    async def test_a_refused_create_changes_nothing(self, store: SessionStore, clock: FakeClock) -> None:
        stored = await store.create_session(new_session(clock, principal="first"))
        await add_raws(store, b"kept")
        with pytest.raises(SessionExists):
            await store.create_session(new_session(clock, principal="second", ttl=1e6))
        assert await store.get_session("session-1") == stored
        assert raws(await store.get_frames("session-1")) == [b"kept"]
        assert await list_all(store) == [stored]

    # -- 2. expired is absent -----------------------------------------------------------------------

    @clause(2)
    async def test_a_session_lives_until_its_expiry(self, store: SessionStore, clock: FakeClock) -> None:
        stored = await store.create_session(new_session(clock, ttl=60))
        clock.advance(59.999)
        assert await store.get_session("session-1") == stored
        assert await store.count_sessions() == 1

    @clause(2)
    async def test_an_expired_session_is_absent_for_every_verb(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        for verb in VERBS:
            # Anew for each verb: the one that finds a session expired may clear it away for the next.
            session_id = f"for-{verb.name}"
            await store.create_session(new_session(clock, session_id, ttl=60))
            await add_raws(store, b"{}", session_id=session_id, stream="t", event_id="e")
            await store.claim_stream(session_id, "t", owner="me", lease=1e6)
            clock.advance(60)
            assert (verb.name, await answer(verb, store, session_id)) == (verb.name, verb.absent)

    @clause(2)
    async def test_an_expired_id_is_free(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock, ttl=60, principal="former"))
        clock.advance(61)
        created = await store.create_session(new_session(clock, ttl=60, principal="latter"))
        clock.advance(59)
        assert await store.get_session("session-1") == created
        assert created.principal == "latter"

    @clause(2)
    @pytest.mark.parametrize("ttl", [0.0, -1.0, -1e6, -4e9])
    async def test_a_session_that_is_created_expired_is_absent_at_once(
        self, clock: FakeClock, ttl: float
    ) -> None:
        async with await self.make_store(clock, StoreLimits(sessions=3)) as store:
            other = await store.create_session(new_session(clock, "other", ttl=1e6))
            record = new_session(clock, ttl=ttl, labels={"a": "1"})
            for _ in range(3):
                assert await store.create_session(record) == replace(record, revision=1)
                assert await store.get_session("session-1") is None
                assert await list_all(store) == [other]
                assert await store.count_sessions() == 1
            assert await store.create_session(record) == replace(record, revision=1)
            created = await store.create_session(new_session(clock, ttl=60))
            assert await store.get_session("session-1") == created
            with pytest.raises(SessionExists):
                await store.create_session(record)
            assert await list_all(store) == [other, created]

    @clause(2)
    async def test_an_expired_session_no_longer_counts(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(sessions=2)) as store:
            await store.create_session(new_session(clock, "brief", ttl=60))
            await store.create_session(new_session(clock, "long", ttl=600))
            clock.advance(60)
            assert await store.count_sessions() == 1
            await store.create_session(new_session(clock, "next", ttl=600))
            assert [each.id for each in await list_all(store)] == ["long", "next"]

    @clause(2)
    async def test_a_session_moved_on_in_time_outlives_its_first_expiry(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, "touched", ttl=60))
        updated = await store.create_session(new_session(clock, "updated", ttl=60))
        await store.touch_session("touched", clock() + 120)
        await store.update_session(replace(updated, expires_at=clock() + 120))
        clock.advance(119)
        assert await store.count_sessions() == 2
        clock.advance(1)
        assert await store.count_sessions() == 0

    # -- 4. compare-and-set -------------------------------------------------------------------------

    @clause(4)
    async def test_the_revision_counts_from_one(self, store: SessionStore, clock: FakeClock) -> None:
        created = await store.create_session(new_session(clock, revision=7))
        assert created.revision == 1
        updated = await store.update_session(replace(created, principal="p"))
        assert updated == replace(created, principal="p", revision=2)
        assert await store.get_session("session-1") == updated

    @clause(4)
    @pytest.mark.parametrize("revision", [0, 1, 3])
    async def test_an_update_at_another_revision_overwrites_nothing(
        self, store: SessionStore, clock: FakeClock, revision: int
    ) -> None:
        created = await store.create_session(new_session(clock))
        current = await store.update_session(replace(created, principal="theirs"))
        with pytest.raises(SessionConflict):
            await store.update_session(replace(created, principal="mine", revision=revision))
        assert await store.get_session("session-1") == current

    @clause(4)
    async def test_one_of_many_concurrent_updates_wins(self, store: SessionStore, clock: FakeClock) -> None:
        created = await store.create_session(new_session(clock))
        records = [replace(created, principal=f"p{number}") for number in range(20)]
        answers = await together([partial(store.update_session, record) for record in records])
        winners = [each for each in answers if isinstance(each, Session)]
        losers = [each for each in answers if isinstance(each, SessionConflict)]
        assert (len(winners), len(losers)) == (1, 19)
        assert await store.get_session("session-1") == winners[0]

    @clause(4)
    async def test_no_concurrent_update_is_lost(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))

        def mark(labels: dict[str, str], number: int) -> None:
            labels[f"by-{number}"] = "was here"

        marks = [partial(mark, number=number) for number in range(10)]
        await together([partial(relabel, store, "session-1", each) for each in marks])
        session = await store.get_session("session-1")
        assert session is not None
        assert sorted(session.labels) == sorted(f"by-{number}" for number in range(10))
        assert session.revision == 11

    # -- 5. delete takes all along ------------------------------------------------------------------

    @clause(5)
    @pytest.mark.parametrize("ended_by", ["delete", "expiry"])
    async def test_a_session_created_anew_starts_empty(
        self, store: SessionStore, clock: FakeClock, ended_by: str
    ) -> None:
        await store.create_session(new_session(clock, ttl=60))
        await add_raws(store, b"1", b"2", stream="t", event_id="e")
        await store.store_last_event_id("session-1", "g")
        await store.claim_stream("session-1", "t", owner="me", lease=1e6)
        if ended_by == "delete":
            assert await store.delete_session("session-1") is True
        clock.advance(61)
        await store.create_session(new_session(clock))
        assert await store.get_frames("session-1") == []
        assert await store.get_last_event_id("session-1") is None
        assert await store.get_last_event_id("session-1", stream="t") is None
        assert await store.get_stream_claim("session-1", "t") is None
        assert await add_raws(store, b"3", stream="t", token=0) == [1]

    @clause(5)
    async def test_a_deleted_session_leaves_no_trace(self, store: SessionStore, clock: FakeClock) -> None:
        for verb in VERBS:
            session_id = f"for-{verb.name}"
            await store.create_session(new_session(clock, session_id))
            await add_raws(store, b"{}", session_id=session_id, stream="t", event_id="e")
            await store.claim_stream(session_id, "t", owner="me", lease=1e6)
            assert await store.delete_session(session_id) is True
            assert (verb.name, await answer(verb, store, session_id)) == (verb.name, verb.absent)

    @clause(5)
    async def test_deleting_one_session_leaves_the_others(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        kept = await store.create_session(new_session(clock, "session-11"))
        await add_raws(store, b"kept", session_id="session-11", stream="t", event_id="e")
        await store.delete_session("session-1")
        assert await list_all(store) == [kept]
        assert raws(await store.get_frames("session-11")) == [b"kept"]
        assert await store.get_last_event_id("session-11", stream="t") == "e"

    @clause(5)
    async def test_one_of_many_concurrent_deletes_says_that_it_was_there(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        answers = await together([partial(store.delete_session, "session-1")] * 10)
        assert sorted(map(repr, answers)) == ["False"] * 9 + ["True"]

    @clause(5)
    async def test_frames_written_during_a_delete_go_along_or_are_refused(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(together, [partial(store.add_frame, new_frame(b"%d" % number))] * 3)
            tasks.start_soon(store.delete_session, "session-1")
        assert await store.get_frames("session-1") == []
        await store.create_session(new_session(clock))
        assert await store.get_frames("session-1") == []
        assert await add_raws(store, b"first") == [1]

    # -- 7. never shorter ---------------------------------------------------------------------------

    @clause(7)
    async def test_touch_moves_the_expiry_forward_only(self, store: SessionStore, clock: FakeClock) -> None:
        created = await store.create_session(new_session(clock, ttl=60))
        assert await store.touch_session("session-1", clock() + 90) is True
        assert await store.get_session("session-1") == replace(created, expires_at=clock() + 90)
        assert await store.touch_session("session-1", clock() + 30) is True
        assert await store.get_session("session-1") == replace(created, expires_at=clock() + 90)

    @clause(7)
    async def test_of_many_concurrent_touches_the_latest_time_stays(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, ttl=60))
        times = [clock() + 60 + (number * 7) % 20 for number in range(20)]
        await together([partial(store.touch_session, "session-1", time) for time in times])
        session = await store.get_session("session-1")
        assert session is not None
        assert session.expires_at == max(times)

    @clause(7)
    async def test_an_update_keeps_the_later_expiry(self, store: SessionStore, clock: FakeClock) -> None:
        created = await store.create_session(new_session(clock, ttl=60))
        await store.touch_session("session-1", clock() + 90)
        updated = await store.update_session(replace(created, principal="p"))
        assert updated == replace(created, principal="p", revision=2, expires_at=clock() + 90)
        later = await store.update_session(replace(updated, expires_at=clock() + 95))
        assert later.expires_at == clock() + 95
        batch = await store.update_sessions_batch([replace(later, expires_at=clock() + 1)])
        assert batch["session-1"].expires_at == clock() + 95
        assert await store.get_session("session-1") == batch["session-1"]

    @clause(7)
    async def test_a_touch_puts_no_update_in_conflict(self, store: SessionStore, clock: FakeClock) -> None:
        created = await store.create_session(new_session(clock))
        await store.touch_session("session-1", clock() + 90)
        assert (await store.update_session(created)).revision == 2

    @clause(7)
    @pytest.mark.parametrize("ended_by", ["delete", "expiry"])
    async def test_neither_touch_nor_update_revives(
        self, store: SessionStore, clock: FakeClock, ended_by: str
    ) -> None:
        created = await store.create_session(new_session(clock, ttl=60))
        if ended_by == "delete":
            await store.delete_session("session-1")
        clock.advance(61)
        later = clock() + 60
        assert await store.touch_session("session-1", later) is False
        with pytest.raises(SessionNotFound):
            await store.update_session(replace(created, expires_at=later))
        assert await store.update_sessions_batch([replace(created, expires_at=later)]) == {}
        assert await store.get_session("session-1") is None
        assert await store.count_sessions() == 0

    # -- 13. pages ----------------------------------------------------------------------------------

    @clause(13)
    async def test_pages_show_each_session_once_in_order_of_creation(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        # Neither the ids nor the times they claim to be created at are in the order of creation.
        names = [f"s{(number * 7) % 25}" for number in range(25)]
        for number, name in enumerate(names):
            await store.create_session(replace(new_session(clock, name), created_at=1000.0 - number % 3))
        for limit in (1, 7, 25, 100):
            assert [each.id for each in await list_all(store, limit=limit)] == names

    @clause(13)
    async def test_a_page_keeps_to_its_limit(self, store: SessionStore, clock: FakeClock) -> None:
        for number in range(5):
            await store.create_session(new_session(clock, f"s{number}"))
        page = await store.list_sessions(limit=3)
        assert len(page.sessions) <= 3
        assert page.cursor is not None

    @clause(13)
    async def test_sessions_that_come_and_go_hide_no_other(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        for number in range(20):
            await store.create_session(new_session(clock, f"s{number}"))
        page = await store.list_sessions(limit=4)
        seen = [each.id for each in page.sessions]
        for number in range(3):
            assert page.cursor is not None
            await store.delete_session(f"s{number}")
            await store.delete_session(f"s{19 - number}")
            await store.touch_session(f"s{number + 3}", clock() + 100)
            await relabel(store, f"s{16 - number}", lambda labels: labels.update(seen="no"))
            await store.create_session(new_session(clock, f"late{number}"))
            page = await store.list_sessions(limit=4, cursor=page.cursor)
            seen += [each.id for each in page.sessions]
        while page.cursor is not None:
            page = await store.list_sessions(limit=4, cursor=page.cursor)
            seen += [each.id for each in page.sessions]
        lived_throughout = [f"s{number}" for number in range(3, 17)]
        assert [each for each in seen if each in lived_throughout] == lived_throughout
        assert len(set(seen)) == len(seen)

    @clause(13)
    async def test_pages_of_one_upstream(self, store: SessionStore, clock: FakeClock) -> None:
        for number in range(12):
            await store.create_session(new_session(clock, f"s{number}", upstream="a" if number % 4 else "b"))
        assert [each.id for each in await list_all(store, limit=2, upstream="b")] == ["s0", "s4", "s8"]
        assert await list_all(store, limit=2, upstream="c") == []
