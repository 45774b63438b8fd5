"""What a store on `KeyValueStore` gets: the contract on three primitives, at a cost that does not grow."""

from collections.abc import AsyncIterator, Mapping

import anyio
import pytest

from shadowcat_stores import SessionStore, StoreFull, StoreLimits, StoreUnavailable, Window
from shadowcat_stores.testing import FakeClock, SessionStoreContract, store_state_machine
from shadowcat_stores.testing.harness import new_frame, new_session, raws, take
from tests.stores.keyvalue import DictStore

NO_LIMIT = StoreLimits(sessions=None)


class TestKeyValueStore(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def backend(self) -> None:
        self.items: dict[bytes, bytes] = {}

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return DictStore(self.items, clock=clock, limits=limits)


async def make_key_value_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
    return DictStore({}, clock=clock, limits=limits)


TestKeyValueStoreAsAMachine = store_state_machine(make_key_value_store)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(clock: FakeClock) -> AsyncIterator[DictStore]:
    async with DictStore({}, clock=clock, limits=NO_LIMIT) as store:
        yield store


VERBS = {
    "create_session": {"scan": 1, "read": 1, "commit": 1},
    "get_session": {"read": 1},
    "touch_session": {"read": 1, "commit": 1},
    "count_sessions": {"scan": 1, "read": 1},
    "list_sessions": {"scan": 1, "read": 1},
    "add_frame": {"read": 2, "scan": 1, "commit": 1},
    "add_frames": {"read": 2, "scan": 2, "commit": 1},
    "get_frames": {"scan": 1, "read": 1},
    "get_last_event_id": {"read": 2},
    "claim_stream": {"read": 2, "commit": 1},
    "delete_session": {"read": 2, "scan": 1, "commit": 1},
}


async def costs(sessions: int, frames: int, streams: int) -> dict[str, tuple[dict[str, int], int]]:
    """Return what each verb asks of the backend where the store and its session hold that much."""
    clock, tape = FakeClock(), Window(frames=frames)
    async with DictStore({}, clock=clock, limits=NO_LIMIT) as store:
        for number in range(sessions):
            await store.create_session(new_session(clock, f"s{number}", ttl=1e6))
        names = [f"t{number % streams}" for number in range(frames)]
        await store.add_frames([new_frame(b"{}", "s0", stream=each, event_id="e") for each in names])
        frame = new_frame(b"{}", "s0", stream="t0", event_id="e")
        calls = {
            "create_session": store.create_session(new_session(clock, "new")),
            "get_session": store.get_session("s0"),
            "touch_session": store.touch_session("s0", clock() + 2e6),
            "count_sessions": store.count_sessions(),
            "list_sessions": store.list_sessions(limit=10),
            "add_frame": store.add_frame(frame, keep=tape),
            "add_frames": store.add_frames([frame, frame], keep=tape),
            "get_frames": store.get_frames("s0", limit=10),
            "get_last_event_id": store.get_last_event_id("s0", stream="t0"),
            "claim_stream": store.claim_stream("s0", "t0", owner="me", lease=9.0),
            "delete_session": store.delete_session("s1"),
        }
        found = {}
        for name, call in calls.items():
            store.calls.clear()
            store.items_read = 0
            await call
            found[name] = (dict(store.calls), store.items_read)
    return found


async def test_the_cost_of_a_verb_does_not_grow_with_what_is_held() -> None:
    few = await costs(sessions=20, frames=20, streams=5)
    many = await costs(sessions=500, frames=300, streams=100)
    assert many == few
    assert {name: calls for name, (calls, _) in many.items()} == VERBS


async def test_an_ended_session_leaves_nothing_behind(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock, "first"))
    await store.delete_session("first")
    empty = set(store.items)
    assert len(empty) == 1
    for session_id in ("deleted", "expired", "created anew"):
        await store.create_session(new_session(clock, session_id, ttl=60.0))
        for number in range(5):
            stream = f"t{number % 3}"
            await store.add_frame(new_frame(b"{}", session_id, stream=stream, event_id="e"))
            await store.claim_stream(session_id, stream, owner="me", lease=30.0)
    await store.touch_session("created anew", clock() + 90)
    assert await store.delete_session("deleted") is True
    clock.advance(90)
    await store.create_session(new_session(clock, "created anew"))
    assert await store.count_sessions() == 1
    await store.delete_session("created anew")
    assert set(store.items) == empty


async def test_a_create_clears_away_a_part_of_what_has_expired(store: DictStore, clock: FakeClock) -> None:
    for number in range(250):
        await store.create_session(new_session(clock, f"s{number}", ttl=1.0))
    clock.advance(1)
    before = len(store.items)
    await store.create_session(new_session(clock, "new"))
    assert before - 4 * 100 <= len(store.items) <= before - 3 * 100
    assert await store.count_sessions() == 1
    assert len(store.items) == 5


async def test_a_full_store_looks_for_all_that_has_expired(clock: FakeClock) -> None:
    async with DictStore({}, clock=clock, limits=StoreLimits(sessions=151)) as store:
        for number in range(150):
            # Each is indexed by an expiry that it outlives, ahead of the one that has expired.
            await store.create_session(new_session(clock, f"s{number}", ttl=1.0))
            await store.touch_session(f"s{number}", clock() + 100)
        await store.create_session(new_session(clock, "expired", ttl=2.0))
        clock.advance(2)
        await store.create_session(new_session(clock, "new"))
        with pytest.raises(StoreFull):
            await store.create_session(new_session(clock, "one more"))
        assert await store.count_sessions() == 151


async def test_a_touched_session_moves_in_the_index_of_expiry_when_it_would_have_expired(
    store: DictStore, clock: FakeClock
) -> None:
    await store.create_session(new_session(clock, ttl=10.0))
    await store.touch_session("session-1", clock() + 100)
    clock.advance(10)
    for commits in (1, 0):
        store.calls.clear()
        assert await store.count_sessions() == 1
        assert store.calls["commit"] == commits


async def test_many_sessions_are_read_in_several_reads(store: DictStore, clock: FakeClock) -> None:
    ids = [f"s{number}" for number in range(1_001)]
    for session_id in ids:
        await store.create_session(new_session(clock, session_id))
    store.calls.clear()
    assert sorted(await store.get_sessions_batch(ids)) == sorted(ids)
    assert store.calls == {"read": 2}


async def test_followers_of_this_process_hear_of_a_change_without_looking(clock: FakeClock) -> None:
    class OwnStore(DictStore):
        shared = False

    async with OwnStore({}, clock=clock, limits=NO_LIMIT) as store:
        await store.create_session(new_session(clock))
        found: list[bytes] = []

        async def follow() -> None:
            found.extend(raws(await take(store, 2)))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await anyio.wait_all_tasks_blocked()
                store.calls.clear()
                await anyio.wait_all_tasks_blocked()
                assert not store.calls
                for raw in (b"1", b"2"):
                    await store.add_frame(new_frame(raw))
        assert found == [b"1", b"2"]


async def test_following_a_long_tape_reads_it_in_parts(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    await store.add_frames([new_frame(b"%d" % number) for number in range(250)])
    store.calls.clear()
    assert raws(await take(store, 250)) == [b"%d" % number for number in range(250)]
    assert store.calls["scan"] == 3


async def test_what_another_program_wrote_is_no_crash(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    store.items.update((key, b"?") for key in store.items if key.startswith(b"s"))
    with pytest.raises(StoreUnavailable, match="a place of its own"):
        await store.get_session("session-1")


async def test_a_store_that_is_not_open_asks_its_backend_nothing(clock: FakeClock) -> None:
    store = DictStore({}, clock=clock, limits=NO_LIMIT)
    with pytest.raises(StoreUnavailable, match="async with"):
        await store.ping()
    with pytest.raises(StoreUnavailable, match="async with"):
        await store.get_sessions_batch([])
    nothing: Mapping[str, int] = {}
    assert store.calls == nothing


async def test_streams_beyond_a_lower_limit_are_all_forgotten(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    names = [f"t{number}" for number in range(40)]
    await store.add_frames([new_frame(b"{}", stream=each, event_id="e") for each in names])
    limits = StoreLimits(streams=2)
    async with DictStore(store.items, clock=clock, limits=limits) as stricter:
        latest = ["u0", "u1", "u2"]
        await stricter.add_frames([new_frame(b"{}", stream=each, event_id="e") for each in latest])
        known = [
            each for each in names + latest if await stricter.get_last_event_id("session-1", stream=each)
        ]
    assert known == ["u1", "u2"]


async def test_a_tape_is_trimmed_a_long_way_in_few_scans(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    await store.add_frames([new_frame(b"x") for _ in range(500)])
    store.calls.clear()
    await store.add_frame(new_frame(b"x"), keep=Window(frames=1))
    assert len(await store.get_frames("session-1")) == 1
    assert store.calls["scan"] <= 12


async def create_anew(store: DictStore, clock: FakeClock) -> None:
    await store.delete_session("session-1")
    await store.create_session(new_session(clock))
    await store.add_frame(new_frame(b"of another"))


async def test_following_ends_where_another_process_created_the_session_anew(
    store: DictStore, clock: FakeClock
) -> None:
    class SeldomLooking(DictStore):
        follow_interval = 60.0

    await store.create_session(new_session(clock))
    found: list[bytes] = []
    async with SeldomLooking(store.items, clock=clock, limits=NO_LIMIT) as one:

        async def follow() -> None:
            found.extend(raws(await take(one, 1)))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await anyio.wait_all_tasks_blocked()
                await create_anew(store, clock)
                await one.touch_session("session-1", clock() + 90)
    assert found == []


async def test_a_session_created_anew_during_a_listing_is_listed_in_its_new_place(
    store: DictStore, clock: FakeClock
) -> None:
    for session_id in ("session-1", "session-2"):
        await store.create_session(new_session(clock, session_id))
    async with DictStore(store.items, clock=clock, limits=NO_LIMIT) as other:

        async def meanwhile() -> None:
            store.after_a_scan = None
            await create_anew(other, clock)

        store.after_a_scan = meanwhile
        page = await store.list_sessions(limit=1)
        assert page.sessions == []
        rest = await store.list_sessions(cursor=page.cursor)
        assert [each.id for each in rest.sessions] == ["session-2", "session-1"]


async def test_frames_are_not_written_to_a_session_created_anew(store: DictStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    await store.claim_stream("session-1", "t", owner="me", lease=30.0)
    async with DictStore(store.items, clock=clock, limits=NO_LIMIT) as other:

        async def meanwhile() -> None:
            store.after_a_scan = None
            await other.delete_session("session-1")
            await other.create_session(new_session(clock))

        store.after_a_scan = meanwhile
        await store.add_frames([new_frame(b"1"), new_frame(b"2")], keep=Window(frames=1))
    frames = await store.get_frames("session-1")
    assert [frame.seq for frame in frames] == [2]
    assert store.calls["commit"] == 4
