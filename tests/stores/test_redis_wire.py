"""How `RedisStore` talks to the server: each write once, and on few connections."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
import redis as redis_py
from redis.asyncio import Redis

from shadowcat.counters import Counters
from shadowcat.recorder import Recorder
from shadowcat.settings import Settings
from shadowcat_stores import Frame, MessageEnvelope, StoreUnavailable
from shadowcat_stores._redis.news import SAFETY
from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, new_frame, new_session, raws, take
from tests.support.redis import RedisServer, connections, relay, until
from tests.support.tls import server_context

OTHER_PROCESS = """
import anyio, sys, time
from shadowcat_stores import Session, Frame, MessageEnvelope
from shadowcat_stores._redis.news import SAFETY
from shadowcat_stores.redis import RedisStore

async def main():
    async with RedisStore(sys.argv[1], prefix=sys.argv[2], clock=lambda: float(sys.argv[3])) as store:
        for n in range(3):
            envelope = MessageEnvelope(raw=b"%d" % n, kind="request")
            await store.add_frame(Frame(session_id="s", direction="client", envelope=envelope, at=0.0))
        sys.stdin.readline()
        print((await store.get_session("s")).principal)
        await store.delete_session("s")

anyio.run(main)
"""

# -- what is sent once --------------------------------------------------------------------------------


async def test_a_write_whose_answer_is_lost_is_not_sent_again(redis: RedisServer, clock: FakeClock) -> None:
    async with relay(redis) as network, Redis(port=network.port) as client:
        # The client would send up to ten times.
        prefix = f"test-{uuid4()}:"
        async with RedisStore(client, prefix=prefix, clock=clock) as store:
            await store.create_session(new_session(clock))
            await add_raws(store, b"1")  # So that the server has the script.
            network.loses_replies = True
            with pytest.raises(StoreUnavailable):
                await store.add_frame(new_frame(b"2"))
        async with RedisStore(redis.url, prefix=prefix, clock=clock) as store:
            assert raws(await store.get_frames("session-1")) == [b"1", b"2"]


async def test_frames_handed_in_again_after_a_failure_are_stored_once(
    redis: RedisServer, clock: FakeClock
) -> None:
    async with relay(redis) as network:
        url = f"redis://127.0.0.1:{network.port}"
        async with RedisStore(url, prefix=f"test-{uuid4()}:", clock=clock) as store:
            for session_id in ("a", "b"):
                await store.create_session(new_session(clock, session_id))
            await add_raws(store, b"before", session_id="a")
            # The same object more than once is more than one frame.
            batch = [new_frame(b"1", "a"), new_frame(b"2", "b"), *[new_frame(b"3", "a")] * 2]
            network.loses_replies = True
            with pytest.raises(StoreUnavailable):
                await store.add_frames(batch)
            network.loses_replies = False
            batch.append(new_frame(b"4", "a"))
            assert await store.add_frames(batch) == [2, 1, 3, 4, 5]
            assert await store.add_frames(batch) == [6, 2, 7, 8, 9]
            assert raws(await store.get_frames("a")) == [b"before", *[b"1", b"3", b"3", b"4"] * 2]
            assert raws(await store.get_frames("b")) == [b"2", b"2"]


async def test_other_frames_after_a_failure_are_other_frames(redis: RedisServer, clock: FakeClock) -> None:
    async with relay(redis) as network:
        url = f"redis://127.0.0.1:{network.port}"
        async with RedisStore(url, prefix=f"test-{uuid4()}:", clock=clock) as store:
            await store.create_session(new_session(clock))
            await add_raws(store, b"0")
            network.loses_replies = True
            with pytest.raises(StoreUnavailable):
                await store.add_frames([new_frame(b"1"), new_frame(b"2")])
            network.loses_replies = False
            assert await store.add_frames([new_frame(b"1"), new_frame(b"2")]) == [4, 5]


async def test_a_repeated_write_is_answered_as_the_first_time(store: RedisStore, clock: FakeClock) -> None:
    await store.create_session(new_session(clock, ttl=1e6))
    for _ in range(2):
        await store.claim_stream("session-1", "t", owner="me", lease=1.0)
        clock.advance(1)
    frames = [new_frame(stream="t", token=token) for token in (2, 1, 2)]
    (write,) = store._writes.of(frames)["session-1"]
    first = await store._ask(store._appending("session-1", write, store._said_to_all(None)))
    assert first == b"1 2"
    # Those that came in between do not matter, as long as they are few.
    await add_raws(store, b"x", b"y", b"z")
    assert await store._ask(store._appending("session-1", write, store._said_to_all(None))) == first
    assert len(await store.get_frames("session-1")) == 5
    await add_raws(store, b"x")
    assert await store._ask(store._appending("session-1", write, store._said_to_all(None))) == b"7 2"


async def test_a_recorder_whose_write_timed_out_stores_it_once(
    own_redis: RedisServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat.recorder._RETRY_EVERY", 0.0)
    messages = [MessageEnvelope(b"%d" % number, "notification") for number in range(7)]
    async with RedisStore(own_redis.url, clock=clock, timeout=0.1) as store:
        for session_id in ("a", "b"):
            await store.create_session(new_session(clock, session_id, ttl=1e6))
        await add_raws(store, b"before", session_id="a")  # So that the server has the script.
        recorder = Recorder(store, Settings(tape="full", record_window=0.001), counters := Counters())
        recorder.client_sent("a", messages[:2])
        recorder.client_sent("b", messages[2:4])
        own_redis.pause()
        for _ in range(3):
            await recorder.flush()
            assert recorder.waiting == 4
        # What came meanwhile goes out with the same batch. The server executes late what it has got.
        recorder.client_sent("a", messages[4:6])
        own_redis.resume()
        recorder.start()
        recorder.client_sent("b", messages[6:])
        await recorder.stop()
        assert (recorder.waiting, counters.frames_recorded, counters.frames_dropped) == (0, 7, 0)
        assert raws(await store.get_frames("a")) == [b"before", b"0", b"1", b"4", b"5"]
        assert raws(await store.get_frames("b")) == [b"2", b"3", b"6"]


async def test_large_frames_are_sent_whole(
    redis: RedisServer, clock: FakeClock, client: redis_py.Redis, tmp_path: Path
) -> None:
    context, known_by = server_context(tmp_path)
    async with relay(redis, context) as network:
        for url in (redis.url, f"rediss://localhost:{network.port}?ssl_ca_certs={known_by}"):
            async with RedisStore(url, prefix=f"test-{uuid4()}:", clock=clock) as store:
                await store.create_session(new_session(clock))
                client.script_flush()  # So that they are sent twice.
                sizes = [1, 40_000, 40_000, 300_000, 1, 3_000, 1_000_000, 2]
                frames = [new_frame(b"%d" % place * size) for place, size in enumerate(sizes)]
                assert await store.add_frames(frames) == list(range(1, 9))
                assert raws(await store.get_frames("session-1")) == [each.envelope.raw for each in frames]


async def test_scripts_that_the_server_lost_are_sent_again(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis
) -> None:
    await store.create_session(new_session(clock, "a"))
    await store.create_session(new_session(clock, "b"))
    client.script_flush()
    assert await store.add_frames([new_frame(b"%d" % n, "ab"[n % 2]) for n in range(6)]) == [1, 1, 2, 2, 3, 3]
    assert raws(await store.get_frames("b")) == [b"1", b"3", b"5"]


# -- connections --------------------------------------------------------------------------------------


async def test_one_connection_serves_all_who_call_and_no_reply_is_anothers(
    redis: RedisServer, clock: FakeClock, client: redis_py.Redis
) -> None:
    name = uuid4().hex
    url = f"{redis.url}?client_name={name}"
    async with RedisStore(url, prefix=f"test-{uuid4()}:", clock=clock) as store:
        for number in range(50):
            await store.create_session(new_session(clock, f"s{number}"))
        right = 0

        async def read(number: int, steps: int) -> None:
            nonlocal right
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_later, scope, steps)
                    session = await store.get_session(f"s{number}")
                    assert session is not None
                    assert session.id == f"s{number}"
                    right += 1

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                for steps in range(20):
                    tasks.start_soon(read, number, steps)
        assert right > 0
        assert connections(client, name, "normal") == 1


async def _cancel_later(scope: anyio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def test_what_cannot_be_sent_is_a_value_error_and_disturbs_nobody(
    store: RedisStore, clock: FakeClock
) -> None:
    created = await store.create_session(new_session(clock))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.get_session, "session-1")
        for wrong in (
            partial(store.get_session, "\ud800"),
            partial(store.store_last_event_id, "session-1", "\ud800"),
            partial(store.create_session, new_session(clock, principal="\ud800")),
            partial(store.add_frame, new_frame(stream="\ud800")),
            partial(take, store, 1, "\ud800"),
        ):
            with pytest.raises(ValueError, match="surrogates not allowed"):
                await wrong()
    assert await store.get_session("session-1") == created
    assert await store.count_sessions() == 1
    await add_raws(store, b"1")
    assert len(await take(store, 1)) == 1


async def test_one_connection_serves_all_who_follow(
    redis: RedisServer, clock: FakeClock, client: redis_py.Redis
) -> None:
    name = uuid4().hex
    store = RedisStore(f"{redis.url}?client_name={name}", prefix=f"test-{uuid4()}:", clock=clock)
    found: list[Frame] = []

    async def follow(number: int) -> None:
        found.extend(await take(store, 2, f"s{number % 10}"))

    async with store:
        for number in range(10):
            await store.create_session(new_session(clock, f"s{number}"))
            await add_raws(store, b"1", session_id=f"s{number}")
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(follow, number)
            await until(lambda: len(client.pubsub_channels(f"{store.prefix}*")) == 10)
            assert connections(client, name, "pubsub") == 1
            for number in range(10):
                await add_raws(store, b"2", session_id=f"s{number}")
        assert len(found) == 60
        await until(lambda: not client.pubsub_channels(f"{store.prefix}*"))
    await until(lambda: not connections(client, name, "normal") + connections(client, name, "pubsub"))


async def test_following_survives_the_loss_of_its_connection(
    redis: RedisServer, clock: FakeClock, client: redis_py.Redis
) -> None:
    name = uuid4().hex
    prefix = f"test-{uuid4()}:"
    mine = RedisStore(f"{redis.url}?client_name={name}", prefix=prefix, clock=clock)
    async with mine, RedisStore(redis.url, prefix=prefix, clock=clock) as theirs:
        await theirs.create_session(new_session(clock))
        await add_raws(theirs, b"1")
        async with aclosing(mine.follow_frames("session-1")) as frames:
            for number in range(2, 5):
                assert (await anext(frames)).seq == number - 1
                await until(lambda: connections(client, name, "pubsub"))
                (subscribed,) = [
                    each["id"] for each in client.client_list(_type="pubsub") if each["name"] == name
                ]
                client.client_kill_filter(_id=subscribed)
                # Nobody hears of this one: it is found when the new connection is there.
                await add_raws(theirs, b"%d" % number)
            with anyio.fail_after(4):
                assert (await anext(frames)).seq == 4


@pytest.mark.parametrize("frames", [0, 5])
async def test_following_ends_where_another_session_has_the_id(
    store: RedisStore, clock: FakeClock, client: redis_py.Redis, frames: int
) -> None:
    await store.create_session(new_session(clock, ttl=60))
    await add_raws(store, b"1", b"2")
    async with aclosing(store.follow_frames("session-1")) as followed:
        assert [(await anext(followed)).seq for _ in range(2)] == [1, 2]
        end = asyncio.ensure_future(anext(followed, None))
        # It reads once more when it is subscribed, and then waits.
        await until(lambda: client.pubsub_channels(f"{store.prefix}*"))
        for _ in range(5):
            await store.ping()
        clock.advance(60)
        created = await store.create_session(new_session(clock))
        # In one step with the other's end for who follows: it reads when all of them are there.
        await store.add_frames([new_frame(b"of another")] * frames)
        # Told so, and not found when it looks anyway.
        with anyio.fail_after(SAFETY - 1):
            assert await end is None
    assert await store.get_session("session-1") == created


async def test_who_does_not_hear_of_a_frame_finds_it_all_the_same(
    store: RedisStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_session(new_session(clock))
    monkeypatch.setattr(store._connected().news, "_heard", lambda channel: None)
    monkeypatch.setattr("shadowcat_stores._redis.news.Listener.wait.__defaults__", (0.01,))
    async with aclosing(store.follow_frames("session-1")) as frames, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(add_raws, store, b"1"))
        with anyio.fail_after(4):
            assert (await anext(frames)).seq == 1


async def test_two_processes_share_sessions_and_tapes(redis: RedisServer, store: RedisStore) -> None:
    clock = FakeClock()
    await store.create_session(new_session(clock, "s", principal="theirs to read"))
    arguments = [redis.url, store.prefix, str(clock())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OTHER_PROCESS, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with anyio.fail_after(20):
        async with aclosing(store.follow_frames("s")) as frames:
            assert [(await anext(frames)).envelope.raw for _ in range(3)] == [b"0", b"1", b"2"]
            said, _ = await process.communicate(b"go on\n")
            assert [frame async for frame in frames] == []
    assert said.strip() == b"theirs to read"
    assert await store.count_sessions() == 0
