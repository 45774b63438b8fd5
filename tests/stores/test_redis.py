"""`RedisStore` keeps the contract, and what only it promises: its keys, its index, its connections."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
import redis as redis_py
from redis.crc import key_slot

from shadowcat_stores import (
    Frame,
    SessionExists,
    SessionStore,
    StoreFull,
    StoreLimits,
    StoreUnavailable,
    Window,
)
from shadowcat_stores._redis.index import RESERVED_FOR, Entry
from shadowcat_stores._redis.tape import Tape
from shadowcat_stores._redis.wire import Call
from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock, SessionStoreContract, store_state_machine
from shadowcat_stores.testing.harness import add_raws, list_all, new_frame, new_session, raws, seqs, take
from shadowcat_stores.testing.verbs import VERBS, answer
from tests.support.redis import RedisServer, connections, until

ELSEWHERE = os.environ.get("SHADOWCAT_TEST_REDIS_URL", "")


class TestRedisStore(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def place(self, redis: RedisServer) -> None:
        self.url, self.prefix = redis.url, f"test-{uuid4()}:"

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return RedisStore(self.url, prefix=self.prefix, clock=clock, limits=limits)


if ELSEWHERE:

    class TestRedisStoreElsewhere(SessionStoreContract):
        @pytest.fixture(autouse=True)
        def place(self) -> Iterator[None]:
            self.prefix = f"test-{uuid4()}:"
            yield
            with redis_py.Redis.from_url(ELSEWHERE) as client:
                for key in client.scan_iter(f"{self.prefix}*", count=10_000):
                    client.delete(key)

        async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
            return RedisStore(ELSEWHERE, prefix=self.prefix, clock=clock, limits=limits)


class TestRedisStoreAsAMachine:
    def test_it_does_as_the_model_does(self, redis: RedisServer) -> None:
        async def make_store(clock: FakeClock, limits: StoreLimits) -> SessionStore:
            return RedisStore(redis.url, prefix=f"test-{uuid4()}:", clock=clock, limits=limits)

        store_state_machine(make_store)("runTest").debug()


def keys_of(client: redis_py.Redis, store: RedisStore) -> set[str]:
    return {key.decode() for key in client.scan_iter(f"{store.prefix}*", count=10_000)}


async def fill(store: RedisStore, clock: FakeClock, session_id: str = "s") -> None:
    """Let a session have all that a session can have."""
    await store.create_session(new_session(clock, session_id))
    await add_raws(store, b"1", session_id=session_id, stream="t", event_id="e")
    await store.claim_stream(session_id, "t", owner="me", lease=60.0)


# -- keys ---------------------------------------------------------------------------------------------


async def test_every_key_has_a_ttl_longer_than_the_session(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await fill(store, clock)
    await store.ping()
    keys = keys_of(client, store)
    of_the_session = {key for key in keys if key.startswith(f"{store.prefix}{{s}}")}
    assert len(of_the_session) == 4
    assert all(60_000 < client.pttl(key) <= 360_000 for key in keys - {store._index.probe})
    assert 0 < client.pttl(store._index.probe) <= 1_000
    await store.touch_session("s", clock() + 3_600)
    assert all(3_600_000 < client.pttl(key) <= 3_900_000 for key in of_the_session)
    session = await store.get_session("s")
    assert session is not None
    await store.update_session(new_session(clock, "s", ttl=7_200, revision=1))
    # What is of streams came before and what comes after lasts as long.
    await store.delete_frames("s")
    await add_raws(store, b"2", session_id="s")
    assert all(7_200_000 < client.pttl(key) <= 7_500_000 for key in of_the_session)
    assert client.pttl(store._index.key) > 7_200_000


async def test_a_session_of_all_times_has_a_ttl_that_the_server_takes(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    for session_id, ttl in (("forever", 1e300), ("over", -1e300)):
        await store.create_session(new_session(clock, session_id, ttl=ttl))
        assert client.pttl(store._keys(session_id)[0]) > 0
    assert [each.id for each in await list_all(store)] == ["forever"]


@pytest.mark.parametrize("ended_by", ["delete", "expiry"])
async def test_no_key_of_a_session_is_left(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis, ended_by: str
) -> None:
    await fill(store, clock)
    if ended_by == "delete":
        await store.delete_session("s")
    else:
        clock.advance(60)
        assert await store.delete_session("s") is False
    assert keys_of(client, store) <= {*store._index.keys, store._index.probe}
    assert client.zcard(store._index.keys[0]) == client.zcard(store._index.keys[1]) == 0


@pytest.mark.parametrize("session_id", ["s", "", "{", "}", "{}", "}{", "{a}{b}", "%", "%7B", "index", "é"])
async def test_what_a_script_touches_is_in_one_slot(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, session_id: str
) -> None:
    asked: list[Call] = []
    server = store._connected()
    run = server.run

    async def note(calls: list[Call]) -> list[object]:
        asked.extend(calls)
        return await run(calls)

    monkeypatch.setattr(server, "run", note)
    for verb in VERBS:
        await answer(verb, store, session_id)
    await store.create_session(new_session(FakeClock(), session_id, ttl=1e6))
    assert len(asked) > len(VERBS)
    for call in asked:
        keys = [part for command in call.commands for part in command if str(part).startswith(store.prefix)]
        assert {key_slot(str(key).encode()) for key in [call.key, *keys]} == {key_slot(call.key.encode())}


def test_other_ids_have_other_keys() -> None:
    store = RedisStore("redis://localhost")
    ids = ["", "%", "%7B", "{", "%257B", "%25", "}", "%7D", "{}", "s"]
    assert len({store._keys(each) for each in ids}) == len(ids)


async def test_what_is_not_of_the_store_is_said_to_be(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock, "s"))
    record, tape, *_ = store._keys("s")
    client.set(tape, "theirs")
    with pytest.raises(StoreUnavailable, match="prefix of its own"):
        await store.get_frames("s")
    client.delete(tape)
    client.xadd(tape, {"z": b"\1\0\0\0\1\0\0\0", "f": b"\xc1"}, id="1-0")
    with pytest.raises(StoreUnavailable, match="is no tape"):
        await store.get_frames("s")
    client.hset(record, "d", b"\xc1")
    with pytest.raises(StoreUnavailable, match="is no session"):
        await store.get_session("s")


# -- the index ----------------------------------------------------------------------------------------


async def test_a_reservation_that_led_to_nothing_lapses(redis: RedisServer, clock: FakeClock) -> None:
    limits = StoreLimits(sessions=1)
    async with RedisStore(redis.url, prefix=f"test-{uuid4()}:", clock=clock, limits=limits) as store:
        # Its process died before it wrote the session.
        assert await store._ask_index(store._index.reserve(clock(), "lost", 1)) == 1
        assert await store.count_sessions() == 0
        with pytest.raises(StoreFull):
            await store.create_session(new_session(clock, "next"))
        clock.advance(RESERVED_FOR)
        await store.create_session(new_session(clock, "next"))
        with pytest.raises(StoreFull):
            await store.create_session(new_session(clock, "one-more"))


async def test_another_create_of_the_id_uses_the_reservation(redis: RedisServer, clock: FakeClock) -> None:
    limits = StoreLimits(sessions=1)
    async with RedisStore(redis.url, prefix=f"test-{uuid4()}:", clock=clock, limits=limits) as store:
        await store._ask_index(store._index.reserve(clock(), "s", 1))
        await store.create_session(new_session(clock, "s"))
        assert await store.count_sessions() == 1
        with pytest.raises(SessionExists):
            await store.create_session(new_session(clock, "s"))


@pytest.mark.parametrize("by", ["touch", "update"])
async def test_a_session_that_the_index_lost_comes_back(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis, by: str
) -> None:
    for session_id in ("first", "lost", "last"):
        await store.create_session(new_session(clock, session_id))
    client.delete(*store._index.keys)
    assert await store.count_sessions() == 0
    for session_id in ("last", "lost"):
        if by == "touch":
            await store.touch_session(session_id, clock() + 120)
        else:
            moved = new_session(clock, session_id, ttl=120, revision=1)
            assert list(await store.update_sessions_batch([moved])) == [session_id]
    assert await store.count_sessions() == 2
    await store.create_session(new_session(clock, "new"))
    assert [each.id for each in await list_all(store)] == ["lost", "last", "new"]


async def test_an_entry_without_a_session_goes_when_a_listing_meets_it(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    for session_id in ("kept", "lost"):
        await store.create_session(new_session(clock, session_id))
    client.delete(*store._keys("lost"))
    assert await store.count_sessions() == 2
    assert [each.id for each in await list_all(store)] == ["kept"]
    await asyncio.gather(*store._unfinished)
    assert await store.count_sessions() == 1


async def test_what_comes_late_brings_no_deleted_session_back(store: RedisStore, clock: FakeClock) -> None:
    created = await store.create_session(new_session(clock, "s"))
    (number,) = (await store._ask(store._reading("s")))[2:]
    await store.delete_session("s")
    late = store._index.enter(clock(), [Entry(created.id, int(number), clock() + 600)])
    await store._ask_index(late)
    assert await store.count_sessions() == 0
    await store.create_session(new_session(clock, "s"))
    await store._ask_index(late)
    await store._ask_index(store._index.remove(clock(), [("s", int(number))]))
    assert await store.count_sessions() == 1
    clock.advance(60)
    assert await store.count_sessions() == 0


async def test_what_comes_late_moves_no_later_session(store: RedisStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock, "s", ttl=20))
    (number,) = (await store._ask(store._reading("s")))[2:]
    clock.advance(20)
    await store.create_session(new_session(clock, "s", ttl=20))
    await store._ask_index(store._index.enter(clock(), [Entry("s", int(number), clock() + 600)]))
    await store._ask_index(store._index.remove(clock(), [("s", int(number))]))
    assert [each.id for each in await list_all(store)] == ["s"]
    clock.advance(20)
    assert await store.count_sessions() == 0


async def test_a_session_is_not_listed_in_the_place_of_a_former_one(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock, "s"))
    await store.create_session(new_session(clock, "t"))
    # As if it had been deleted and created anew, each time by somebody who died before the second step.
    client.hset(store._keys("s")[0], "n", 99)
    assert [each.id for each in await list_all(store)] == ["t"]
    await asyncio.gather(*store._unfinished)
    assert await store.count_sessions() == 1
    await store.touch_session("s", clock() + 100)
    assert [each.id for each in await list_all(store)] == ["t", "s"]
    await store.create_session(new_session(clock, "u"))
    assert [each.id for each in await list_all(store)] == ["t", "s", "u"]


async def test_expired_entries_go_little_by_little(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    for number in range(250):
        await store.create_session(new_session(clock, f"s{number}", ttl=1 + number % 2))
    clock.advance(2)
    assert await store.count_sessions() == 0
    left = []
    for number in range(3):
        await store.create_session(new_session(clock, f"new{number}"))
        left.append(client.zcard(store._index.keys[1]))
    assert left == [151, 52, 3]


async def test_a_page_looks_at_a_bounded_number_of_sessions(store: RedisStore, clock: FakeClock) -> None:
    for number in range(250):
        await store.create_session(new_session(clock, f"s{number}", upstream="often"))
    await store.create_session(new_session(clock, "rare", upstream="rare"))
    pages = [await store.list_sessions(limit=10, upstream="rare")]
    while pages[-1].cursor is not None:
        pages.append(await store.list_sessions(limit=10, upstream="rare", cursor=pages[-1].cursor))
    assert [len(page.sessions) for page in pages] == [0, 0, 1]
    assert len((await store.list_sessions(limit=10**12)).sessions) == 251


async def test_very_many_sessions_are_read_in_a_few_round_trips(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock, "s"))
    before = client.info("commandstats")["cmdstat_hmget"]["calls"]
    found = await store.get_sessions_batch([*(f"absent{number}" for number in range(2_500)), "s"])
    assert list(found) == ["s"]
    assert client.info("commandstats")["cmdstat_hmget"]["calls"] == before + 2_501


# -- the tape -----------------------------------------------------------------------------------------


async def test_frames_are_packed(store: RedisStore, clock: FakeClock, client: redis_py.Redis) -> None:
    await store.create_session(new_session(clock))
    tape = store._keys("session-1")[1]
    await store.add_frames([new_frame(b"x" * 300)] * 100)
    assert client.xlen(tape) == 1
    await store.add_frames([new_frame(b"y")] * 129)
    assert client.xlen(tape) == 3
    sizes = [30_000, 30_000, 30_000, 100_000, 1]
    await store.add_frames([new_frame(b"z" * size) for size in sizes])
    assert client.xlen(tape) == 7
    found = await store.get_frames("session-1")
    assert seqs(found) == list(range(1, 235))
    assert [len(raw) for raw in raws(found)] == [300] * 100 + [1] * 129 + sizes


async def test_what_is_trimmed_takes_no_room(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock))
    tape = store._keys("session-1")[1]
    for size in (10, 10, 10, 1):
        await store.add_frames([new_frame(b"x" * 10)] * size, keep=Window(frames=15))
    assert client.xlen(tape) == 3
    assert seqs(await store.get_frames("session-1")) == list(range(17, 32))
    await store.add_frame(new_frame(b"y" * 10), keep=Window(bytes=20))
    assert client.xlen(tape) == 2
    assert raws(await store.get_frames("session-1")) == [b"x" * 10, b"y" * 10]


async def test_a_tape_that_the_server_lost_goes_on(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock))
    await store.add_frames([new_frame(b"x" * 10)] * 5)
    client.delete(store._keys("session-1")[1])
    assert await store.get_frames("session-1") == []
    assert await store.add_frame(new_frame(b"y" * 5), keep=Window(frames=2, bytes=8)) == 6
    assert await store.add_frame(new_frame(b"z" * 5), keep=Window(frames=2, bytes=8)) == 7
    assert raws(await store.get_frames("session-1")) == [b"z" * 5]
    client.delete(store._keys("session-1")[1])
    assert await store.add_frames([new_frame(b"1"), new_frame(b"2")], keep=Window(frames=1)) == [8, 9]
    assert await store.add_frames([new_frame(b"3"), new_frame(b"4")], keep=Window(frames=3)) == [10, 11]
    assert raws(await store.get_frames("session-1")) == [b"2", b"3", b"4"]


async def test_frames_fenced_out_are_taken_from_between_others(store: RedisStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock, ttl=1e6))
    for _ in range(2):
        await store.claim_stream("session-1", "t", owner="me", lease=1.0)
        clock.advance(1)
    batch = [new_frame(b"%d" % n, stream="t", token=1 if n % 3 == 0 else 2) for n in range(300)]
    got = await store.add_frames(batch)
    assert got == [0 if n % 3 == 0 else 1 + n - (n // 3 + 1) for n in range(300)]
    assert raws(await store.get_frames("session-1")) == [b"%d" % n for n in range(300) if n % 3]
    assert await store.add_frames([new_frame(stream="t", token=1)] * 2) == [0, 0]
    assert await add_raws(store, b"next") == [201]


async def test_a_number_that_cannot_be_stored_is_a_value_error(store: RedisStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock))
    with pytest.raises(ValueError, match="64 bits"):
        await store.add_frame(new_frame(at=2**64))
    assert await add_raws(store, b"1") == [1]


@pytest.mark.parametrize(
    ("asked", "seqs_found", "entries"),
    [
        ({"limit": 1}, range(1, 2), 1),
        ({"limit": 100}, range(1, 101), 2),
        ({"limit": 1_000}, range(1, 1_001), 14),
        ({"limit": 150, "after": 950}, range(951, 1_101), 2),
        ({"limit": 10, "after": 3_995}, range(3_996, 4_001), 1),
        ({"limit": 3, "stream": "even"}, range(2, 7, 2), 2),
        ({"limit": 200, "stream": "even", "after": 2_000}, range(2_002, 2_401, 2), 6),
        ({"limit": 1, "stream": "none"}, (), 40),
    ],
)
async def test_a_page_of_a_large_tape_reads_little_more_than_the_page(
    store: RedisStore,
    clock: FakeClock,
    client: redis_py.Redis,
    asked: dict[str, Any],
    seqs_found: Sequence[int],
    entries: int,
) -> None:
    await store.create_session(new_session(clock))
    frames = [new_frame(b"x" * 600, stream=("even", "odd")[number % 2]) for number in range(1, 101)]
    for _ in range(40):
        await store.add_frames(frames)
    entry = (client.memory_usage(store._keys("session-1")[1], samples=0) or 0) / 40
    before = client.info("stats")["total_net_output_bytes"]
    assert seqs(await store.get_frames("session-1", **asked)) == list(seqs_found)
    read = client.info("stats")["total_net_output_bytes"] - before
    assert (entries - 1) * entry < read < (entries + 0.5) * entry


@pytest.mark.parametrize("packed", [1, 3, 10])
async def test_pages_of_any_size_make_up_the_tape(store: RedisStore, clock: FakeClock, packed: int) -> None:
    await store.create_session(new_session(clock))
    for first in range(0, 60, packed):
        await add_raws(store, *(b"%d" % number for number in range(first, first + packed)))
    for limit in (1, 7, 60, 61):
        found: list[Frame] = []
        while page := await store.get_frames("session-1", after=len(found), limit=limit):
            found += page
        assert raws(found) == [b"%d" % number for number in range(60)]


async def test_a_page_is_as_the_tape_was_when_it_was_last_looked_at(
    store: RedisStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_session(new_session(clock))
    for number in range(20):
        await add_raws(store, b"%d" % number)
    meanwhile: list[Callable[[], Awaitable[object]]] = []
    read = store._read

    async def read_slowly(*arguments: Any) -> Tape | None:
        tape = await read(*arguments)
        while meanwhile:
            await meanwhile.pop(0)()
        return tape

    monkeypatch.setattr(store, "_read", read_slowly)
    meanwhile.append(partial(store.add_frame, new_frame(b"20"), keep=Window(frames=16)))
    assert seqs(await store.get_frames("session-1", limit=10)) == list(range(6, 16))
    meanwhile.append(partial(store.delete_frames, "session-1"))
    assert await store.get_frames("session-1", limit=10) == []
    await add_raws(store, b"21", b"22", b"23")
    await add_raws(store, b"24")
    await add_raws(store, b"25")
    meanwhile += [
        partial(store.delete_session, "session-1"),
        partial(store.create_session, new_session(clock)),
        partial(add_raws, store, b"of another"),
    ]
    assert raws(await store.get_frames("session-1", limit=10)) == [b"of another"]
    await add_raws(store, b"1")
    await add_raws(store, b"2")
    meanwhile.append(partial(store.delete_session, "session-1"))
    assert await store.get_frames("session-1", limit=10) == []


@pytest.mark.parametrize("after", [-5, 2**80])
async def test_any_seq_may_be_asked_after(store: RedisStore, clock: FakeClock, after: int) -> None:
    await store.create_session(new_session(clock))
    await add_raws(store, b"1")
    assert seqs(await store.get_frames("session-1", after=after)) == ([1] if after < 0 else [])


# -- life ---------------------------------------------------------------------------------------------


def test_a_store_can_be_opened_in_one_loop_after_another(redis: RedisServer, clock: FakeClock) -> None:
    store = RedisStore(redis.url, prefix=f"test-{uuid4()}:", clock=clock)

    async def use(number: int) -> None:
        async with store:
            await store.create_session(new_session(clock, f"s{number}"))
            await add_raws(store, b"1", session_id=f"s{number}")
            assert len(await take(store, 1, f"s{number}")) == 1
            assert await store.count_sessions() == number

    for number in (1, 2):
        asyncio.run(use(number))


async def test_a_store_that_is_dropped_open_warns_and_its_connections_end(
    redis: RedisServer, client: redis_py.Redis
) -> None:
    name = uuid4().hex
    store = RedisStore(f"{redis.url}?client_name={name}", clock=FakeClock(), prefix=f"test-{uuid4()}:")
    await store.open()
    await store.create_session(new_session(FakeClock()))
    await add_raws(store, b"1")
    await take(store, 1)
    with pytest.warns(ResourceWarning, match="await aclose"):  # noqa: PT031 - both statements drop it
        del store
        gc.collect()
    await until(lambda: not connections(client, name, "normal") + connections(client, name, "pubsub"))


def test_a_store_dropped_after_its_loop_ended_warns(redis: RedisServer) -> None:
    store = RedisStore(redis.url)
    asyncio.run(store.open())
    with pytest.warns(ResourceWarning):  # noqa: PT031 - both statements drop it
        del store
        gc.collect()


async def test_closing_finishes_what_was_begun(redis: RedisServer, clock: FakeClock) -> None:
    prefix = f"test-{uuid4()}:"
    async with RedisStore(redis.url, prefix=prefix, clock=clock) as store:
        await store.create_session(new_session(clock))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.touch_session, "session-1", clock() + 600)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    async with RedisStore(redis.url, prefix=prefix, clock=clock) as store:
        clock.advance(100)
        assert await store.count_sessions() == 1


async def test_a_server_that_may_evict_sessions_is_warned_of(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with own_redis.client() as client:
        cases = [("100mb", "noeviction", 0), ("0", "volatile-lru", 0), ("1gb", "volatile-lru", 1)]
        for memory, policy, warnings in cases:
            client.config_set("maxmemory", memory)
            client.config_set("maxmemory-policy", policy)
            async with RedisStore(own_redis.url):
                assert len(caplog.records) == warnings
    assert "noeviction" in caplog.text


async def test_an_object_that_a_fork_has_doubled_is_two_writers(redis: RedisServer) -> None:
    """As under `gunicorn --preload`: the server must not take the frames of one for those of the other."""
    clock = FakeClock()
    made = RedisStore(redis.url, clock=clock)
    async with copy.deepcopy(made) as one, copy.deepcopy(made) as other:
        await one.create_session(new_session(clock))
        assert await add_raws(one, b"1") == [1]
        assert await add_raws(other, b"2") == [2]
        assert raws(await one.get_frames("session-1")) == [b"1", b"2"]
