"""Clause 17: a batch answers for each item by itself."""

from __future__ import annotations

from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import ContractBase, clause, new_frame, new_session, raws


class BatchClause(ContractBase):
    """The tests of the clause about batches."""

    @clause(17)
    async def test_reading_many_sessions(self, store: SessionStore, clock: FakeClock) -> None:
        stored = {each: await store.create_session(new_session(clock, each)) for each in ("a", "b", "c")}
        assert await store.get_sessions_batch(["a", "nobody", "c", "a"]) == {
            "a": stored["a"],
            "c": stored["c"],
        }
        assert await store.get_sessions_batch(iter(["b"])) == {"b": stored["b"]}
        assert await store.get_sessions_batch([]) == {}

    @clause(17)
    async def test_updating_many_sessions(self, store: SessionStore, clock: FakeClock) -> None:
        a, b, c = [await store.create_session(new_session(clock, each)) for each in ("a", "b", "c")]
        current = await store.update_session(replace(b, principal="theirs"))
        mine = [replace(each, principal="mine") for each in (a, b, replace(a, id="nobody"), c)]
        updated = await store.update_sessions_batch(iter(mine))
        assert updated == {
            "a": replace(a, principal="mine", revision=2),
            "c": replace(c, principal="mine", revision=2),
        }
        assert await store.get_sessions_batch(["a", "b", "c", "nobody"]) == {**updated, "b": current}
        assert await store.update_sessions_batch([]) == {}

    @clause(17)
    async def test_of_two_updates_of_one_session_the_first_wins(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        created = await store.create_session(new_session(clock))
        updates = [replace(created, principal="first"), replace(created, principal="second")]
        first = replace(created, principal="first", revision=2)
        assert await store.update_sessions_batch(updates) == {"session-1": first}
        assert await store.get_session("session-1") == first

    @clause(17)
    async def test_adding_frames_to_many_sessions(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock, "a"))
        await store.create_session(new_session(clock, "b"))
        frames = [
            new_frame(b"%d" % n, each) for n, each in enumerate(["a", "nobody", "b", "a", "b", "nobody"])
        ]
        assert await store.add_frames(frames) == [1, 0, 1, 2, 2, 0]
        assert raws(await store.get_frames("a")) == [b"0", b"3"]
        assert raws(await store.get_frames("b")) == [b"2", b"4"]
        assert await store.get_frames("nobody") == []
        assert await store.add_frames([]) == []
