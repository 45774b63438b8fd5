"""The recorder: batched, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import anyio
import pytest

from shadowcat.counters import Counters
from shadowcat.readers import Arrival, Notice
from shadowcat.recorder import Recorder
from shadowcat.settings import Settings
from shadowcat_stores import Frame, MemoryStore, MessageEnvelope, Session, StoreUnavailable, Window


class WatchedStore(MemoryStore):
    """A memory store that tells of each write, and can be down."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: 10.0)
        self.batches: list[int] = []
        self.wrote = anyio.Event()
        self.down = False

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        self.batches.append(len(frames))
        self.wrote.set()
        if self.down:
            raise StoreUnavailable("down")
        return await super().add_frames(frames, keep=keep)


def message(text: str = "x") -> MessageEnvelope:
    return MessageEnvelope(text.encode(), "other")


async def setup(**settings: object) -> tuple[WatchedStore, Recorder, Counters]:
    store, counters = WatchedStore(), Counters()
    await store.open()
    await store.create_session(Session(id="s", created_at=0, expires_at=100))
    return store, Recorder(store, Settings(**settings), counters), counters  # type: ignore[arg-type]


async def test_what_gathers_within_the_window_is_written_together() -> None:
    store, recorder, counters = await setup(record_window=0.01)
    recorder.start()
    for number in range(50):
        recorder.client_sent("s", [message(str(number))])
    assert store.batches == []  # recording itself writes nothing
    with anyio.fail_after(5):
        await store.wrote.wait()
    await recorder.stop()
    assert store.batches == [50]
    assert [frame.envelope.raw for frame in await store.get_frames("s")] == [b"%d" % n for n in range(50)]
    assert (counters.frames_recorded, recorder.waiting) == (50, 0)


async def test_stopping_writes_what_waits() -> None:
    store, recorder, _ = await setup(record_window=1000)
    recorder.start()
    recorder.server_sent("s", [Arrival([message()], 1, None, "e-1")], "get")
    await recorder.stop()
    assert await store.get_last_event_id("s") == "e-1"


async def test_large_backlogs_are_written_in_parts() -> None:
    store, recorder, _ = await setup(tape="full")
    recorder.client_sent("s", [message()] * 2500)
    await recorder.flush()
    assert store.batches == [1000, 1000, 500]


async def test_frames_of_a_session_that_ended_are_let_go() -> None:
    _, recorder, counters = await setup()
    recorder.client_sent("gone", [message()])
    recorder.client_sent("s", [message()])
    await recorder.flush()
    assert counters.frames_recorded == 1
    assert recorder.waiting == 0


async def test_beyond_its_room_frames_are_dropped_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, recorder, counters = await setup(record_queue_bytes=610)
    recorder.client_sent("s", [message("12345"), message("67890"), message("1"), message("")])
    assert (recorder.waiting, counters.frames_dropped) == (2, 2)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    await recorder.flush()
    recorder.client_sent("s", [message("again")])
    await recorder.flush()
    assert [(frame.envelope.kind, frame.envelope.raw) for frame in await store.get_frames("s")] == [
        ("other", b"12345"),
        ("other", b"67890"),
        ("gap", b'{"dropped":2}'),
        ("other", b"again"),
    ]


async def test_a_gap_stands_before_what_comes_after_it() -> None:
    store, recorder, _ = await setup(record_queue_bytes=1000)
    store.down = True
    recorder.client_sent("s", [message("1"), message("2"), message("3"), message("dropped")])
    await recorder.flush()
    store.down = False
    recorder._room += 1000  # as when a part of what waits has been written
    recorder.client_sent("s", [message("4")])
    await recorder.flush()
    raws = [frame.envelope.raw for frame in await store.get_frames("s")]
    assert raws == [b"1", b"2", b"3", b'{"dropped":1}', b"4"]


async def test_a_store_that_is_down_gets_the_frames_when_it_is_back() -> None:
    store, recorder, _ = await setup(record_window=0)
    store.down = True
    recorder.start()
    recorder.client_sent("s", [message("1")])
    with anyio.fail_after(5):
        await store.wrote.wait()
        assert recorder.waiting == 1
        store.down = False
        while recorder.waiting:
            await anyio.lowlevel.checkpoint()
    recorder.client_sent("s", [message("2")])
    await recorder.stop()
    assert [frame.envelope.raw for frame in await store.get_frames("s")] == [b"1", b"2"]


async def test_a_store_that_failed_is_handed_the_very_same_frames_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By which it knows those that it has stored all the same."""
    store, recorder, _ = await setup()
    handed: list[Sequence[Frame]] = []

    async def add_frames(frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        handed.append(frames)
        raise StoreUnavailable("perhaps")

    monkeypatch.setattr(store, "add_frames", add_frames)
    notice = Notice(b'{"jsonrpc":"2.0","method":"notifications/progress"}', 1, None, "e-1")
    recorder.server_sent("s", [notice, Arrival([message()])], "t")
    for _ in range(2):
        await recorder.flush()
    first, again = handed
    assert [frame.event_id for frame in first] == ["e-1", None]
    assert all(one is other for one, other in zip(first, again, strict=True))


async def test_with_the_tape_off_nothing_is_recorded() -> None:
    _, recorder, _ = await setup(tape="off")
    recorder.client_sent("s", [message()])
    recorder.server_sent("s", [Arrival([message()])])
    assert recorder.waiting == 0


# -- a store in trouble ---------------------------------------------------------------------------------


class OddStore(WatchedStore):
    """One that cannot keep what is poisonous, and hangs while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: anyio.Event | None = None

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        self.batches.append(len(frames))
        self.wrote.set()
        if self.hanging is not None:
            await self.hanging.wait()
        if any(frame.envelope.raw == b"poison" for frame in frames):
            raise ValueError("poison")
        return await super().add_frames(frames, keep=keep)


async def odd_setup(**settings: object) -> tuple[OddStore, Recorder, Counters]:
    store, counters = OddStore(), Counters()
    await store.open()
    await store.create_session(Session(id="s", created_at=0, expires_at=100))
    return store, Recorder(store, Settings(**settings), counters), counters  # type: ignore[arg-type]


async def raws(store: WatchedStore) -> list[bytes]:
    return [frame.envelope.raw for frame in await store.get_frames("s")]


async def test_a_frame_that_no_store_can_keep_is_left_out_alone(caplog: pytest.LogCaptureFixture) -> None:
    store, recorder, counters = await odd_setup()
    recorder.start()
    recorder.client_sent("s", [message("1"), message("2"), message("poison"), message("3")])
    await recorder.flush()
    recorder.client_sent("s", [message("4")])
    await recorder.stop()
    assert await raws(store) == [b"1", b"2", b"3", b'{"dropped":1}', b"4"]
    assert (recorder.waiting, recorder._waiting_bytes, counters.frames_dropped) == (0, 0, 1)
    assert "ValueError('poison')" in caplog.text


async def test_marks_of_gaps_do_not_pile_up_while_the_store_takes_nothing() -> None:
    store, recorder, counters = await setup(record_queue_bytes=610)
    store.down = True
    recorder.client_sent("s", [message("1"), message("2")])
    for _ in range(10):
        recorder.client_sent("s", [message("dropped")])
        await recorder.flush()
        assert recorder.waiting == 2
    assert counters.frames_dropped == 10
    store.down = False
    await recorder.flush()
    assert await raws(store) == [b"1", b"2", b'{"dropped":10}']


async def test_a_gap_is_marked_as_soon_as_there_is_room_though_nothing_comes_after_it() -> None:
    store, recorder, _ = await setup(record_queue_bytes=610, record_window=0.01)
    recorder.start()
    recorder.client_sent("s", [message("1"), message("2"), message("dropped")])
    with anyio.fail_after(5):
        await store.wrote.wait()
        while recorder.waiting:
            await anyio.lowlevel.checkpoint()
    assert await raws(store) == [b"1", b"2", b'{"dropped":1}']
    await recorder.stop()


async def test_what_must_be_durable_first_waits_for_a_store_that_hangs_once_and_not_for_long() -> None:
    store, recorder, _ = await odd_setup(record_window=0, store_timeout=0.01)
    recorder.start()
    store.hanging = anyio.Event()
    with anyio.fail_after(5):
        for number in range(3):
            recorder.client_sent("s", [message(f"{number}")])
            await recorder.settle()
        assert await raws(store) == []
        store.hanging.set()
        await recorder.stop()
    assert await raws(store) == [b"0", b"1", b"2"]


async def test_what_must_be_durable_first_is_durable_when_it_may_go_on() -> None:
    store, recorder, _ = await odd_setup(record_window=0)
    recorder.start()

    async def record(name: str) -> None:
        for number in range(20):
            recorder.client_sent("s", [message(f"{name}{number}")])
            await recorder.settle()
            assert f"{name}{number}".encode() in await raws(store)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(record, name)
    await recorder.stop()


async def test_a_write_that_is_under_way_at_the_stop_is_not_lost() -> None:
    store, recorder, counters = await odd_setup(record_window=0)
    recorder.start()
    store.hanging = anyio.Event()
    recorder.client_sent("s", [message("1")])
    with anyio.fail_after(5):
        await store.wrote.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recorder.stop)
            await anyio.wait_all_tasks_blocked()
            assert recorder.waiting == 1
            store.hanging.set()
    assert await raws(store) == [b"1"]
    assert (counters.frames_recorded, recorder.waiting) == (1, 0)


async def test_stopping_while_the_store_is_down_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    store, recorder, counters = await setup(record_window=1000)
    store.down = True
    recorder.start()
    recorder.client_sent("s", [message("1"), message("2")])
    await recorder.stop()
    assert counters.frames_dropped == 2
    assert "stopped while the store takes no frames: 2 are lost" in caplog.text


class SharedStore(WatchedStore):
    """A store that other replicas share."""

    shared = True


@pytest.mark.parametrize("alone", [False, True])
async def test_an_answer_waits_for_the_store_only_where_another_replica_may_have_the_next_turn(
    alone: bool,
) -> None:
    store = SharedStore()
    await store.open()
    await store.create_session(Session(id="s", created_at=0, expires_at=100))
    recorder = Recorder(store, Settings(record_window=1000), Counters(), lambda: alone)
    recorder.start()
    answer = MessageEnvelope(b"{}", "response", id=1)
    with anyio.fail_after(5):
        await recorder.pass_on("s", [Arrival([answer])], None)
    assert store.batches == ([] if alone else [1])
    await recorder.stop()
    assert store.batches == [1]


async def test_who_waits_for_a_write_and_is_cancelled_undoes_nothing() -> None:
    class SlowStore(WatchedStore):
        goes_on = asyncio.Event()

        async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
            self.wrote.set()
            await self.goes_on.wait()
            return await super().add_frames(frames, keep=keep)

    store = SlowStore()
    await store.open()
    await store.create_session(Session(id="s", created_at=0, expires_at=100))
    recorder = Recorder(store, Settings(), Counters())
    recorder.client_sent("s", [message()])
    flushing = asyncio.create_task(recorder.flush())
    with anyio.fail_after(5):
        await store.wrote.wait()
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        store.goes_on.set()
        await recorder.flush()
    assert store.batches == [1]
    assert len(await store.get_frames("s")) == 1
