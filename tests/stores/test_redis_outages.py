"""`RedisStore` when its server is down, hangs or refuses: it says so in time, and goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from redis import exceptions

from shadowcat_stores import Frame, StoreUnavailable
from shadowcat_stores import redis as documented
from shadowcat_stores._redis.errors import unavailable
from shadowcat_stores._redis.wire import Call, Line
from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock
from shadowcat_stores.testing.harness import add_raws, new_frame, new_session, raws, seqs, take
from shadowcat_stores.testing.verbs import VERBS, answer
from tests.support.redis import RedisServer, until

BRIEF = 0.3


@pytest.fixture
async def brief(own_redis: RedisServer, clock: FakeClock) -> AsyncIterator[RedisStore]:
    """An open store that waits for nothing long, on a server to do anything with."""
    async with RedisStore(own_redis.url, clock=clock, timeout=BRIEF) as store:
        yield store


async def test_a_server_that_is_gone_is_unavailable_for_every_verb(
    own_redis: RedisServer, brief: RedisStore
) -> None:
    own_redis.kill()
    for verb in VERBS:
        assert (verb.name, await answer(verb, brief, "s")) == (verb.name, StoreUnavailable)
    with pytest.raises(StoreUnavailable, match="see whether it runs"):
        await brief.ping()
    with pytest.raises(StoreUnavailable, match="see whether it runs"):
        await RedisStore(own_redis.url).open()


async def test_a_server_that_comes_back_empty_has_no_sessions_and_takes_new_ones(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    await brief.create_session(new_session(clock))
    await add_raws(brief, b"1")
    own_redis.kill()
    with pytest.raises(StoreUnavailable):
        await brief.get_session("session-1")
    own_redis.start()
    assert await brief.get_session("session-1") is None
    assert await brief.count_sessions() == 0
    await brief.create_session(new_session(clock))
    assert await add_raws(brief, b"2") == [1]


async def test_a_restart_between_two_calls_is_not_noticed(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    await brief.create_session(new_session(clock))
    own_redis.kill()
    own_redis.start()
    # The connection's end is read in a turn of the loop, and not found by a command that fails for it.
    (line,) = brief._connected()._lines()
    await until(lambda: line.ended)
    assert await brief.get_session("session-1") is None


async def test_a_server_that_hangs_is_unavailable_in_time_for_every_verb(
    own_redis: RedisServer, clock: FakeClock
) -> None:
    async with RedisStore(own_redis.url, clock=clock, timeout=0.1) as store:
        await store.create_session(new_session(clock))
        own_redis.pause()
        for verb in VERBS:
            with anyio.fail_after(1):
                assert (verb.name, await answer(verb, store, "session-1")) == (verb.name, StoreUnavailable)
        with anyio.fail_after(1), pytest.raises(StoreUnavailable, match=r"did not answer|in time"):
            await RedisStore(own_redis.url, timeout=0.1).open()
        own_redis.resume()
        await store.ping()


async def test_all_who_wait_for_a_server_that_hangs_are_told(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    await brief.create_session(new_session(clock))
    own_redis.pause()
    told = []

    async def ask() -> None:
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s") as raised:
            await brief.get_session("session-1")
        told.append(raised.value)

    with anyio.fail_after(3 * BRIEF):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert len(told) == 20
    own_redis.resume()
    assert await brief.get_session("session-1") is not None


async def test_what_a_hanging_server_takes_late_is_not_stored_twice(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    for session_id in ("a", "b"):
        await brief.create_session(new_session(clock, session_id))
    await add_raws(brief, b"before", session_id="a")  # So that the server has the script.
    batch = [new_frame(b"%d" % number, "ab"[number % 2]) for number in range(6)]
    own_redis.pause()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await brief.add_frames(batch)
    # It executes now what it has got, though nobody is there any more for the answers.
    own_redis.resume()
    assert await brief.add_frames(batch) == [2, 1, 3, 2, 4, 3]
    assert raws(await brief.get_frames("a")) == [b"before", b"0", b"2", b"4"]
    assert raws(await brief.get_frames("b")) == [b"1", b"3", b"5"]


async def test_a_create_that_hangs_leaves_no_count_behind(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    own_redis.pause()
    with pytest.raises(StoreUnavailable):
        await brief.create_session(new_session(clock))
    own_redis.resume()
    assert await brief.count_sessions() == 0
    assert await brief.get_session("session-1") is None
    await brief.create_session(new_session(clock))


async def test_a_read_only_replica_serves_reads_and_says_what_it_is(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    created = await brief.create_session(new_session(clock))
    with own_redis.client() as client:
        client.replicaof("127.0.0.1", "1")
        assert await brief.get_session("session-1") == created
        for refused in (
            partial(brief.create_session, new_session(clock, "other")),
            partial(brief.add_frames, [new_frame()]),
            partial(brief.touch_session, "session-1", clock() + 100),
            brief.ping,
            RedisStore(own_redis.url).open,
        ):
            with pytest.raises(StoreUnavailable, match=r"read-only replica.*the primary"):
                await refused()
        client.replicaof("NO", "ONE")
    await brief.ping()
    assert await brief.touch_session("session-1", clock() + 100) is True


async def test_after_a_read_only_reply_the_address_is_looked_up_again(
    own_redis: RedisServer, brief: RedisStore
) -> None:
    with own_redis.client() as client:
        before = client.info("stats")["total_connections_received"]
        client.replicaof("127.0.0.1", "1")
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="replica"):
                await brief.ping()
        client.replicaof("NO", "ONE")
        await brief.ping()
        assert client.info("stats")["total_connections_received"] == before + 2


async def test_a_full_server_serves_reads_and_deletes_and_says_that_it_is_full(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    created = await brief.create_session(new_session(clock))
    await add_raws(brief, b"1", stream="t", event_id="e")
    with own_redis.client() as client:
        client.config_set("maxmemory", "1mb")
        client.config_set("maxmemory-policy", "noeviction")
        for refused in (
            partial(brief.create_session, new_session(clock, "other")),
            partial(brief.update_session, created),
            partial(brief.add_frame, new_frame(b"2", stream="t", event_id="e2")),
            partial(brief.add_frames, [new_frame(b"2")]),
            partial(brief.store_last_event_id, "session-1", "e2", stream="t"),
            partial(brief.claim_stream, "session-1", "t", owner="me", lease=1.0),
            brief.ping,
        ):
            with pytest.raises(StoreUnavailable, match="out of memory: raise its maxmemory"):
                await refused()
        assert await brief.get_session("session-1") == created
        assert raws(await brief.get_frames("session-1")) == [b"1"]
        assert await brief.get_last_event_id("session-1", stream="t") == "e"
        assert await brief.count_sessions() == 1
        assert await brief.delete_session("session-1") is True
        assert await brief.count_sessions() == 0
        client.config_set("maxmemory", "0")
    await brief.ping()
    await brief.create_session(new_session(clock))


async def test_a_server_that_cannot_save_says_so(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    with own_redis.client() as client:
        # A file cannot take a directory's place.
        own_redis.block_saving()
        client.config_set("save", "3600 1")
        client.set("changed", "1")
        with suppress(exceptions.ResponseError):
            client.bgsave()
        await until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        with pytest.raises(StoreUnavailable, match="cannot save to its disk"):
            await brief.create_session(new_session(clock))
        client.config_set("save", "")
    await brief.create_session(new_session(clock))


async def test_the_documented_acl_is_enough(own_redis: RedisServer, clock: FakeClock) -> None:
    commands = "+@read +@write +@scripting +@pubsub +@transaction +@connection +info"
    assert commands in " ".join((documented.__doc__ or "").split())
    with own_redis.client() as client:
        rules = ["on", ">p", "resetkeys", "~shadowcat:*", "resetchannels", "&shadowcat:*", "-@all"]
        client.execute_command("ACL", "SETUSER", "me", *rules, *commands.split())
        client.execute_command("ACL", "SETUSER", "reader", *rules, "+@read", "+@connection")
    async with RedisStore(f"redis://me:p@{own_redis.address}", clock=clock) as store:
        for verb in VERBS:
            assert (verb.name, await answer(verb, store, "s")) == (verb.name, verb.absent)
        await store.create_session(new_session(clock))
        found: list[Frame] = []

        async def follow() -> None:
            found.extend(await take(store, 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await add_raws(store, b"1")
            with own_redis.client() as client:
                await until(lambda: client.pubsub_channels("shadowcat:*"))
            await add_raws(store, b"2")
        assert seqs(found) == [1, 2]
    with pytest.raises(StoreUnavailable, match="ACL"):
        await RedisStore(f"redis://reader:p@{own_redis.address}").open()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading its data"),
        (exceptions.MasterDownError("Link with MASTER is down"), "cut off from its primary"),
        (exceptions.ClusterDownError("The cluster is down"), "CLUSTER INFO"),
        (exceptions.MovedError("7 127.0.0.1:1"), r"redis\+cluster://"),
        (exceptions.AskError("7 127.0.0.1:1"), "moving the session's slot"),
        (exceptions.ConnectionError("max number of clients reached"), "maxclients"),
        (exceptions.MaxConnectionsError("Too many connections"), "max_connections"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas"), "min-replicas-to-write"),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), "SLOWLOG"),
        (exceptions.ResponseError("ERR Error running script: @user_script: 3: -OOM command"), "maxmemory"),
        (exceptions.ResponseError("ERR @user_script: 3: -READONLY You can't write"), "the primary"),
        (exceptions.ResponseError("ERR something new"), "something new"),
        (exceptions.TryAgainError("7 127.0.0.1:1"), "moving the session's slot"),
        (exceptions.RedisClusterException("no nodes"), "see whether it runs"),
        (OSError("no route"), "see whether it runs"),
        (TimeoutError(), "in time"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_each_error_says_what_to_do(error: Exception, says: str) -> None:
    with pytest.raises(StoreUnavailable, match=says):
        raise unavailable(error)


# -- following ----------------------------------------------------------------------------------------


async def test_following_goes_on_after_the_server_hung(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat_stores._redis.tape._AGAIN", 0.01)
    await brief.create_session(new_session(clock))
    await add_raws(brief, b"1")
    async with aclosing(brief.follow_frames("session-1")) as frames:
        assert (await anext(frames)).seq == 1
        next_one = asyncio.ensure_future(anext(frames))
        await anyio.wait_all_tasks_blocked()
        own_redis.pause()
        brief._connected().news._heard(brief._keys("session-1")[0].encode())
        with pytest.raises(StoreUnavailable):
            await brief.ping()
        assert not next_one.done()
        own_redis.resume()
        await add_raws(brief, b"2")
        with anyio.fail_after(4):
            assert (await next_one).seq == 2


async def test_following_ends_when_the_server_comes_back_empty(
    own_redis: RedisServer, brief: RedisStore, clock: FakeClock
) -> None:
    await brief.create_session(new_session(clock))
    await add_raws(brief, b"1")
    async with aclosing(brief.follow_frames("session-1")) as frames:
        assert (await anext(frames)).seq == 1
        end = asyncio.ensure_future(anext(frames, None))
        await anyio.wait_all_tasks_blocked()
        own_redis.kill()
        own_redis.start()
        with anyio.fail_after(4):
            assert await end is None


async def test_following_cannot_begin_without_the_server(own_redis: RedisServer, brief: RedisStore) -> None:
    own_redis.kill()
    with pytest.raises(StoreUnavailable):
        await take(brief, 1)


async def test_closing_while_the_server_is_gone_ends_what_follows(
    own_redis: RedisServer, clock: FakeClock
) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(RedisStore(own_redis.url, clock=clock, timeout=BRIEF))
        await store.create_session(new_session(clock))
        frames = await stack.enter_async_context(aclosing(store.follow_frames("session-1")))
        end = asyncio.ensure_future(anext(frames))
        await anyio.wait_all_tasks_blocked()
        own_redis.kill()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(4):
            await store.aclose()
            with pytest.raises(StoreUnavailable):
                await end


# -- the wire -----------------------------------------------------------------------------------------


class Scripted:
    """A connection that says what a test wants."""

    def __init__(self, *says: object) -> None:
        self.says = list(says)

    async def take(self) -> Scripted:
        return self

    async def give_back(self, connection: Scripted) -> None:
        raise RuntimeError("the pool is gone")

    async def read_response(self, **_: object) -> object:
        if not self.says:
            await anyio.sleep_forever()
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    async def send_packed_command(self, *_: object, **__: object) -> None: ...

    async def disconnect(self, **_: object) -> None:
        raise OSError("it is closed already")


async def test_a_client_that_bounds_each_read_may_be_idle() -> None:
    connection = Scripted(exceptions.TimeoutError("idle"), b"PONG")
    line = Line(connection, 4)  # type: ignore[arg-type]
    assert await line.submit([Call("k", (("PING",),))]) == [b"PONG"]
    await line.aclose()


async def test_a_server_that_speaks_unasked_is_not_trusted() -> None:
    line = Line(Scripted(b"what?"), 4)  # type: ignore[arg-type]
    await until(lambda: line.ended)
    await line.aclose()
