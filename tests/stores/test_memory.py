"""What only `MemoryStore` promises: what it costs, and that nothing piles up in it."""

import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from shadowcat_stores import MemoryStore, Session, StoreLimits, StoreUnavailable
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import new_frame, new_session

NO_LIMIT = StoreLimits(sessions=None)


def steps_of(work: Callable[[], object]) -> int:
    """Return how many lines of the stores the work runs: a cost that is the same on every machine."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        # Others run in between: callbacks of the garbage collector.
        steps += event == "line" and frame.f_globals["__name__"].startswith("shadowcat_stores.")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def run_now(store: MemoryStore, verb: str, *args: object, **kwargs: object) -> None:
    """Run a verb of the store without a loop: none of them waits for anything."""
    call = getattr(store, verb)(*args, **kwargs)
    with pytest.raises(StopIteration):
        call.send(None)


async def filled(clock: FakeClock, sessions: int) -> MemoryStore:
    store = MemoryStore(clock=clock, limits=NO_LIMIT)
    await store.open()
    for number in range(sessions):
        await store.create_session(new_session(clock, f"s{number}", ttl=1000.0 + number))
    return store


async def test_the_cost_of_a_call_does_not_grow_with_the_sessions() -> None:
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("get_session", ("s7",)),
        ("count_sessions", ()),
        ("touch_session", ("s7", 4e9)),
        ("add_frame", (new_frame(b"{}", "s7"),)),
        ("get_frames", ("s7",)),
        ("list_sessions", ()),
    ]
    costs = []
    for sessions in (200, 5_000):
        store = await filled(FakeClock(), sessions)
        costs.append([steps_of(partial(run_now, store, verb, *arguments)) for verb, arguments in calls])
    assert costs[0] == costs[1]


async def test_an_idle_session_takes_at_most_3_kb() -> None:
    clock = FakeClock()
    tracemalloc.start()
    try:
        async with MemoryStore(clock=clock, limits=NO_LIMIT) as store:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(2_000):
                await store.create_session(
                    Session(
                        id=f"{number:064x}",
                        created_at=clock(),
                        expires_at=clock() + 3600,
                        upstream_session_id=f"{number:064d}",
                        protocol_version="2025-11-25",
                        principal=f"https://issuer.example user-{number}",
                        credentials=(f"{number:064x}",),
                        initialize=b"%0300d" % number,
                        server_info=b"%0100d" % number,
                    )
                )
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 2_000 <= 3_000


async def test_deleted_sessions_do_not_pile_up() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock) as store:
        kept = await store.create_session(new_session(clock, "kept", ttl=1e6))
        for number in range(1_000):
            await store.create_session(new_session(clock, f"s{number}", ttl=1e6))
            await store.delete_session(f"s{number}")
        assert len(store._index._by_age) < 100
        assert len(store._index._by_expiry) < 100
        assert (await store.list_sessions()).sessions == [kept]
        clock.advance(1e6)
        assert await store.count_sessions() == 0


async def test_expired_sessions_do_not_pile_up() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock) as store:
        for number in range(1_000):
            await store.create_session(new_session(clock, f"s{number}", ttl=10.0))
            clock.advance(1)
        assert await store.count_sessions() == 9
        assert len(store._index.by_id) == 9
        assert len(store._index._by_age) < 100
        assert len(store._index._by_expiry) < 100


async def test_touching_a_session_again_and_again_leaves_one_expiry() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock) as store:
        await store.create_session(new_session(clock, ttl=10.0))
        for _ in range(500):
            clock.advance(9)
            assert await store.touch_session("session-1", clock() + 10) is True
        assert len(store._index._by_expiry) == 1
        clock.advance(10)
        assert await store.get_session("session-1") is None


async def test_deleting_while_many_expire_keeps_the_index_in_order() -> None:
    clock = FakeClock()
    async with MemoryStore(clock=clock) as store:
        for number in range(400):
            await store.create_session(new_session(clock, f"s{number}", ttl=float(number % 20 + 1)))
        for number in range(0, 400, 3):
            await store.delete_session(f"s{number}")
        clock.advance(19)
        survivors = [f"s{number}" for number in range(400) if number % 20 == 19 and number % 3]
        assert [each.id for each in (await store.list_sessions()).sessions] == survivors
        clock.advance(1)
        assert await store.count_sessions() == 0


async def test_a_page_looks_at_a_bounded_number_of_sessions() -> None:
    clock = FakeClock()
    store = await filled(clock, 3_000)
    await store.create_session(new_session(clock, "rare", ttl=1e6, upstream="rare"))
    pages = [await store.list_sessions(limit=10, upstream="rare")]
    while pages[-1].cursor is not None:
        pages.append(await store.list_sessions(limit=10, upstream="rare", cursor=pages[-1].cursor))
    assert [len(page.sessions) for page in pages] == [0, 0, 1]


async def test_an_unopened_store_says_how_to_open_it() -> None:
    with pytest.raises(StoreUnavailable, match="async with"):
        await MemoryStore().get_session("s")
