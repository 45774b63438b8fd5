"""Clauses about the tape: 6, 12 and 15."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial

import anyio
import pytest

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import StoreFull
from shadowcat_stores.records import Frame, Session, StoreLimits, Window
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
    together,
)


class FrameClauses(ContractBase):
    """The tests of the clauses about the tape."""

    # -- 6. in order --------------------------------------------------------------------------------

    @clause(6)
    async def test_frames_are_numbered_from_one(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        await store.create_session(new_session(clock, "session-2"))
        assert await store.add_frame(new_frame(b"a", seq=77)) == 1
        assert await store.add_frames([new_frame(b"b"), new_frame(b"x", "session-2"), new_frame(b"c")]) == [
            2,
            1,
            3,
        ]
        found = await store.get_frames("session-1")
        assert seqs(found) == [1, 2, 3]
        assert raws(found) == [b"a", b"b", b"c"]

    @clause(6)
    async def test_concurrent_writers_leave_no_gap_and_no_duplicate(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        got: dict[bytes, int] = {}

        async def write(writer: int) -> None:
            for number in range(10):
                raw = b"%d:%d" % (writer, number)
                got[raw] = await store.add_frame(new_frame(raw))

        await together([partial(write, writer) for writer in range(10)])
        found = await store.get_frames("session-1")
        assert seqs(found) == list(range(1, 101))
        assert {frame.envelope.raw: frame.seq for frame in found} == got
        for writer in range(10):
            own = [raw for raw in raws(found) if raw.startswith(b"%d:" % writer)]
            assert own == [b"%d:%d" % (writer, number) for number in range(10)]

    @clause(6)
    async def test_concurrent_batches_keep_their_order(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        batches = [[new_frame(b"%d:%d" % (writer, n)) for n in range(10)] for writer in range(5)]
        answers = await together([partial(store.add_frames, batch) for batch in batches])
        found = {frame.seq: frame.envelope.raw for frame in await store.get_frames("session-1")}
        assert list(found) == list(range(1, 51))
        for batch, answer in zip(batches, answers, strict=True):
            assert isinstance(answer, list)
            assert answer == sorted(answer)
            assert [found[seq] for seq in answer] == raws(batch)

    @clause(6)
    async def test_frames_are_selected_by_stream_place_and_number(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        for stream in ("a", "b", None, "a", "b", None, "a"):
            await store.add_frame(new_frame(stream=stream))
        assert seqs(await store.get_frames("session-1", stream="a")) == [1, 4, 7]
        assert seqs(await store.get_frames("session-1", stream="c")) == []
        assert seqs(await store.get_frames("session-1", after=5)) == [6, 7]
        assert seqs(await store.get_frames("session-1", after=1, limit=3)) == [2, 3, 4]
        assert seqs(await store.get_frames("session-1", stream="a", after=1, limit=1)) == [4]
        assert seqs(await store.get_frames("session-1", after=7)) == []
        assert seqs(await store.get_frames("session-1", after=700)) == []

    @clause(6)
    async def test_trimming_takes_from_the_front_and_never_renumbers(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        got = [await store.add_frame(new_frame(b"%d" % n), keep=Window(frames=4)) for n in range(1, 8)]
        assert got == [1, 2, 3, 4, 5, 6, 7]
        found = await store.get_frames("session-1")
        assert (seqs(found), raws(found)) == ([4, 5, 6, 7], [b"4", b"5", b"6", b"7"])
        assert seqs(await store.get_frames("session-1", after=5)) == [6, 7]
        assert seqs(await store.get_frames("session-1", after=1, limit=2)) == [4, 5]

    @clause(6)
    async def test_numbering_goes_on_after_the_frames_are_deleted(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await add_raws(store, b"1", b"2", b"3")
        assert await store.delete_frames("session-1") == 3
        assert await store.get_frames("session-1") == []
        assert await store.delete_frames("session-1") == 0
        assert await add_raws(store, b"4", b"5") == [4, 5]
        found = await store.get_frames("session-1")
        assert (seqs(found), raws(found)) == ([4, 5], [b"4", b"5"])
        assert await take(store, 2, after=3) == found

    # -- 12. bounded --------------------------------------------------------------------------------

    @clause(12)
    @pytest.mark.parametrize(
        ("keep", "left"),
        [
            (Window(frames=2), [4, 5]),
            (Window(bytes=25), [4, 5]),
            (Window(bytes=30), [3, 4, 5]),
            (Window(frames=2, bytes=15), [5]),
            (Window(bytes=9), [5]),
            (Window(frames=0), [5]),
            (Window(), [1, 2, 3, 4, 5]),
        ],
    )
    async def test_a_window_keeps_the_newest_frames_that_fit(
        self,
        store: SessionStore,
        clock: FakeClock,
        keep: Window,
        left: list[int],
    ) -> None:
        for session_id in ("batch", "single"):
            await store.create_session(new_session(clock, session_id))
        await store.add_frames([new_frame(b"x" * 10, "batch")] * 5, keep=keep)
        assert seqs(await store.get_frames("batch")) == left
        for _ in range(5):
            await store.add_frame(new_frame(b"x" * 10, "single"), keep=keep)
        assert seqs(await store.get_frames("single")) == left

    @clause(12)
    async def test_a_window_applies_to_what_was_there_before(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await store.create_session(new_session(clock, "session-2"))
        await add_raws(store, b"aaaa", b"bbb", b"cc")
        await add_raws(store, b"aaaa", b"bbb", session_id="session-2")
        await store.add_frame(new_frame(b"d"), keep=Window(bytes=3))
        assert raws(await store.get_frames("session-1")) == [b"cc", b"d"]
        await store.add_frames([new_frame(b"e"), new_frame(b"f")], keep=Window(frames=3))
        assert raws(await store.get_frames("session-1")) == [b"d", b"e", b"f"]
        assert raws(await store.get_frames("session-2")) == [b"aaaa", b"bbb"]

    @clause(12)
    async def test_the_tape_keeps_to_the_stores_limits(self, clock: FakeClock) -> None:
        limits = StoreLimits(frames=4, frame_bytes=50)
        async with await self.make_store(clock, limits) as store:
            await store.create_session(new_session(clock))
            await add_raws(store, *[b"x" * 10] * 6)
            assert seqs(await store.get_frames("session-1")) == [3, 4, 5, 6]
            await store.add_frames([new_frame(b"y" * 20)] * 2, keep=Window(frames=100, bytes=1000))
            assert seqs(await store.get_frames("session-1")) == [6, 7, 8]
            await store.add_frame(new_frame(b"z" * 51), keep=Window(frames=3))
            assert seqs(await store.get_frames("session-1")) == [9]
            await add_raws(store, b"a")
            assert raws(await store.get_frames("session-1")) == [b"a"]

    @clause(12)
    async def test_the_tape_keeps_to_its_limits_under_concurrent_writers(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(frames=5)) as store:
            await store.create_session(new_session(clock))
            await together([partial(add_raws, store, *[b"x"] * 5) for _ in range(10)])
            assert len(await store.get_frames("session-1")) == 5

    @clause(12)
    async def test_one_session_too_many_is_refused_under_concurrent_creates(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(sessions=5)) as store:
            records = [new_session(clock, f"s{number}") for number in range(20)]
            answers = await together([partial(store.create_session, record) for record in records])
            stored = [each for each in answers if isinstance(each, Session)]
            assert len(stored) == 5
            assert len([each for each in answers if isinstance(each, StoreFull)]) == 15
            assert sorted(each.id for each in await list_all(store)) == sorted(each.id for each in stored)
            assert await store.delete_session(stored[2].id) is True
            await store.create_session(new_session(clock, "after-all"))
            with pytest.raises(StoreFull):
                await store.create_session(new_session(clock, "one-more"))
            assert await store.count_sessions() == 5

    @clause(12)
    async def test_no_limit_is_no_limit(self, clock: FakeClock) -> None:
        limits = StoreLimits(sessions=None, frames=None, frame_bytes=None)
        async with await self.make_store(clock, limits) as store:
            await store.create_session(new_session(clock))
            await store.add_frames([new_frame(b"x")] * 20)
            assert len(await store.get_frames("session-1")) == 20

    # -- 15. following ------------------------------------------------------------------------------

    @clause(15)
    async def test_following_yields_what_is_stored_and_then_what_comes(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await add_raws(store, b"1", b"2", b"3")
        found: list[Frame] = []

        async def follow() -> None:
            found.extend(await take(store, 22, after=1))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(follow)
            for number in range(4, 14):
                await add_raws(store, b"%d" % number)
                await anyio.lowlevel.checkpoint()
            await store.add_frames([new_frame(b"%d" % number) for number in range(14, 24)])
        assert raws(found) == [b"%d" % number for number in range(2, 24)] * 3
        assert seqs(found) == list(range(2, 24)) * 3

    @clause(15)
    async def test_following_one_stream(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        await add_raws(store, b"1", stream="mine")
        await add_raws(store, b"2", stream="other")

        async def write() -> None:
            await add_raws(store, b"3", b"4", stream="other")
            await add_raws(store, b"5")
            await add_raws(store, b"6", stream="mine")

        async with aclosing(store.follow_frames("session-1", stream="mine")) as frames:
            assert (await anext(frames)).seq == 1
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                assert (await anext(frames)).envelope.raw == b"6"

    @clause(15)
    @pytest.mark.parametrize("ended_by", ["delete", "expiry"])
    async def test_following_ends_with_the_session(
        self, store: SessionStore, clock: FakeClock, ended_by: str
    ) -> None:
        await store.create_session(new_session(clock, ttl=60))
        await add_raws(store, b"1")
        found: list[Frame] = []
        started = anyio.Event()

        async def follow() -> None:
            async with aclosing(store.follow_frames("session-1")) as frames:
                async for frame in frames:
                    found.append(frame)
                    started.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await started.wait()
            if ended_by == "delete":
                await store.delete_session("session-1")
            else:
                clock.advance(61)
                assert await store.count_sessions() == 0
            # The one created anew is another session.
            await store.create_session(new_session(clock))
            await add_raws(store, b"of another")
        assert raws(found) == [b"1"]

    @clause(15)
    async def test_following_an_absent_session_yields_nothing(self, store: SessionStore) -> None:
        assert await take(store, 1, "nobody") == []

    @clause(15)
    async def test_a_slow_reader_goes_on_with_the_oldest_frame_still_there(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await add_raws(store, b"1")
        async with aclosing(store.follow_frames("session-1")) as frames:
            assert (await anext(frames)).seq == 1
            for number in range(2, 11):
                await store.add_frame(new_frame(b"%d" % number), keep=Window(frames=3))
            # Frames that it had read ahead before they were trimmed may come first.
            found = [await anext(frames)]
            while found[-1].seq < 10:
                found.append(await anext(frames))
            assert seqs(found)[-3:] == [8, 9, 10]
            assert seqs(found) == sorted(set(seqs(found)))

    @clause(15)
    async def test_a_follower_that_stops_leaves_the_others(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        found: list[Frame] = []

        async def follow() -> None:
            found.extend(await take(store, 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            with anyio.CancelScope() as gone:
                async with anyio.create_task_group() as others:
                    others.start_soon(follow)
                    await anyio.lowlevel.checkpoint()
                    gone.cancel()
            await add_raws(store, b"1", b"2")
        assert raws(found) == [b"1", b"2"]
