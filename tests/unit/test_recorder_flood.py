"""A flood that outruns the window: what the store would let go at once is not written, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import patch

import anyio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shadowcat import recorder as recorder_module
from shadowcat.counters import Counters
from shadowcat.readers import Arrival, Notice
from shadowcat.recorder import Recorder
from shadowcat.settings import Settings
from shadowcat_stores import Frame, MemoryStore, MessageEnvelope, Session, StoreUnavailable, Window

NOTICE = b'{"jsonrpc":"2.0","method":"notifications/message","params":%d}'


FORMER, CURRENT = 1, 2
"""Claims of the stream "one" of session "s": what is sent under the former one is refused."""


class CountingStore(MemoryStore):
    """Remembers how much it was given, and can be down or slow."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 10.0)
        self.given: list[int] = []
        self.down = False
        self.may_go_on: anyio.Event | None = None

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        if self.down:
            raise StoreUnavailable("down")
        self.given.append(len(frames))
        if self.may_go_on is not None:
            await self.may_go_on.wait()
        return await super().add_frames(frames, keep=keep)


async def setup(**settings: object) -> tuple[CountingStore, Recorder, Counters]:
    store, counters = CountingStore(), Counters()
    await store.open()
    for name in ("s", "t"):
        await store.create_session(Session(id=name, created_at=0, expires_at=100))
    former = await store.claim_stream("s", "one", owner="a", lease=50)
    assert former is not None
    await store.release_stream("s", "one", token=former.token)
    claim = await store.claim_stream("s", "one", owner="b", lease=50)
    assert claim is not None
    assert (former.token, claim.token) == (FORMER, CURRENT)
    return store, Recorder(store, Settings(**settings), counters), counters  # type: ignore[arg-type]


def notices(first: int, count: int, event_id: str | None = None) -> list[Notice]:
    return [Notice(NOTICE % number, number, None, event_id) for number in range(first, first + count)]


async def test_what_newer_ones_push_out_is_not_written() -> None:
    store, recorder, counters = await setup()
    recorder.server_sent("s", notices(1, 5000), "one")
    await recorder.flush()
    assert store.given == [1000]
    frames = await store.get_frames("s")
    assert [frame.position for frame in frames] == list(range(4001, 5001))
    assert frames[-1].envelope == MessageEnvelope(NOTICE % 5000, "notification", "notifications/message")
    assert (counters.frames_recorded, counters.frames_outrun, counters.frames_dropped) == (1000, 4000, 0)
    assert (recorder.waiting, recorder._waiting_bytes) == (0, 0)


async def test_what_fits_in_one_batch_is_written_as_it_came() -> None:
    store, recorder, counters = await setup(tape_frames=10)
    recorder.server_sent("s", notices(1, 1000), "one")
    await recorder.flush()
    assert (store.given, counters.frames_outrun) == ([1000], 0)
    assert [frame.seq for frame in await store.get_frames("s")] == list(range(991, 1001))


async def test_the_whole_tape_is_written_whole() -> None:
    store, recorder, counters = await setup(tape="full")
    recorder.server_sent("s", notices(1, 2500), "one")
    await recorder.flush()
    assert (store.given, counters.frames_outrun) == ([1000, 1000, 500], 0)


async def test_other_streams_and_claims_lose_nothing_to_it() -> None:
    """What the store refuses to one claim must not have pushed another's out."""
    store, recorder, _ = await setup(tape_frames=1500)
    recorder.client_sent("t", [MessageEnvelope(b"{}", "other")])
    recorder.server_sent("s", notices(1, 3), "one")
    recorder.server_sent("s", notices(4, 2000), "one", token=FORMER)
    await recorder.flush()
    assert len(await store.get_frames("t")) == 1
    assert [frame.position for frame in await store.get_frames("s")] == [1, 2, 3]


async def test_the_last_id_of_a_stream_is_known_though_its_frame_is_pushed_out() -> None:
    store, recorder, _ = await setup(tape_frames=2)
    recorder.server_sent("s", notices(1, 2, "older"), "one")
    recorder.server_sent("s", notices(3, 1, "newest"), "one")
    recorder.server_sent("s", notices(4, 2000), "one")
    await recorder.flush()
    assert store.given == [3]
    assert await store.get_last_event_id("s", stream="one") == "newest"
    assert [frame.position for frame in await store.get_frames("s")] == [2002, 2003]


async def test_it_takes_no_room_from_others_while_the_store_takes_nothing() -> None:
    store, recorder, counters = await setup(record_queue_bytes=1_000_000, tape_frames=100)
    store.down = True
    recorder.client_sent("t", [MessageEnvelope(b"{}", "other")])
    for first in range(1, 20_000, 500):
        recorder.server_sent("s", notices(first, 500), "one")
        await recorder.flush()
    store.down = False
    recorder.client_sent("t", [MessageEnvelope(b"[]", "other")])
    await recorder.flush()
    assert counters.frames_dropped == 0
    assert [frame.envelope.raw for frame in await store.get_frames("t")] == [b"{}", b"[]"]
    assert [frame.position for frame in await store.get_frames("s")] == list(range(19_901, 20_001))


async def test_what_the_store_may_have_is_given_to_it_again_as_it_was() -> None:
    """It knows by the objects what a call that failed has stored."""
    store, recorder, _ = await setup(tape_frames=10)
    tried: list[Sequence[Frame]] = []
    add_frames = store.add_frames

    async def fail_once(frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        tried.append(frames)
        if len(tried) == 1:
            raise StoreUnavailable("it has stored them, and nobody knows")
        return await add_frames(frames, keep=keep)

    store.add_frames = fail_once  # type: ignore[method-assign]
    recorder.server_sent("s", notices(1, 20), "one")
    await recorder.flush()
    recorder.server_sent("s", notices(21, 3000), "one")
    await recorder.flush()
    assert [a is b for a, b in zip(tried[0], tried[1], strict=False)] == [True] * 20
    assert [frame.position for frame in tried[1][20:]] == list(range(3011, 3021))
    assert recorder.waiting == 0


async def test_who_waits_for_the_store_does_not_take_what_was_left_out_for_written() -> None:
    store, recorder, _ = await setup(record_window=0)
    recorder.start()
    recorder.client_sent("t", [MessageEnvelope(b"{}", "other")])
    recorder.server_sent("s", notices(1, 5000), "one")
    recorder.client_sent("t", [MessageEnvelope(b"[]", "other")])
    store.may_go_on = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            is_settled = anyio.Event()

            async def settle() -> None:
                await recorder.settle()
                is_settled.set()

            tasks.start_soon(settle)
            await anyio.wait_all_tasks_blocked()
            assert store.given == [1000]
            assert not is_settled.is_set()
            store.may_go_on.set()
            await is_settled.wait()
    assert [frame.envelope.raw for frame in await store.get_frames("t")] == [b"{}", b"[]"]
    await recorder.stop()


sent = st.tuples(
    st.sampled_from(["s", "t"]),
    st.sampled_from(["one", "two", None]),
    st.sampled_from([0, FORMER, CURRENT]),
    st.integers(1, 12),
    st.sampled_from([None, None, "id-1", "id-2"]),
    st.booleans(),
)


@given(st.integers(1, 12), st.integers(50, 700), st.lists(sent, max_size=12))
def test_the_tape_is_what_it_would_be(
    frames: int, size: int, all_sent: list[tuple[str, str | None, int, int, str | None, bool]]
) -> None:
    """Frame for frame, but for their numbers: those that were not written never had one."""

    async def tape(leaves_out: bool) -> list[object]:
        store, recorder, _ = await setup(tape_frames=frames, tape_bytes=size)
        if not leaves_out:
            recorder._leave_out_old = lambda: None  # type: ignore[method-assign]
        number = 1
        for session_id, stream, token, count, event_id, is_read in all_sent:
            arrivals: list[Notice | Arrival] = [*notices(number, count, event_id)]
            if is_read:
                arrivals = [
                    Arrival([each.message], each.position, None, event_id)
                    for each in notices(number, count, event_id)
                ]
            recorder.server_sent(session_id, arrivals, stream, token)
            number += count
        await recorder.flush()
        assert (recorder.waiting, recorder._waiting_bytes) == (0, 0)
        ids = [await store.get_last_event_id(name, stream=at) for name in "st" for at in ("one", "two")]
        found = [*await store.get_frames("s"), *await store.get_frames("t")]
        return [*ids, *(replace(each, seq=0) for each in found)]

    with patch.object(recorder_module, "_BATCH_FRAMES", 5):
        assert asyncio.run(tape(True)) == asyncio.run(tape(False))
