"""`RedisStore` on a cluster of three nodes: the contract, slots that move, and a node that dies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from typing import TypeVar
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from shadowcat_stores import SessionStore, StoreLimits, StoreUnavailable
from shadowcat_stores._redis.servers import ClusterServer
from shadowcat_stores.redis import RedisStore
from shadowcat_stores.testing import FakeClock, SessionStoreContract
from shadowcat_stores.testing.harness import add_raws, new_frame, new_session, raws, together
from tests.support.redis import RedisServer, redis_cluster

SLOTS = 16384
T = TypeVar("T")


def url_of(nodes: list[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(node.address for node in nodes)


class TestRedisStoreOnACluster(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def place(self, cluster: list[RedisServer]) -> None:
        self.url, self.prefix = url_of(cluster), f"test-{uuid4()}:"

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        return RedisStore(self.url, prefix=self.prefix, clock=clock, limits=limits)


@pytest.fixture
def own_cluster() -> Iterator[list[RedisServer]]:
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture
async def clustered(cluster: list[RedisServer], clock: FakeClock) -> AsyncIterator[RedisStore]:
    async with RedisStore(url_of(cluster), prefix=f"test-{uuid4()}:", clock=clock) as store:
        yield store


def place_of(store: RedisStore, session_id: str) -> int:
    """Return which of the three nodes has the session."""
    return key_slot(store._keys(session_id)[0].encode()) * 3 // SLOTS


def ids_on(store: RedisStore, place: int, most: int = 1) -> list[str]:
    # Other tests' ids may be in the same slots whatever their prefix, so these are nobody else's.
    ids = (uuid4().hex for _ in count())
    return list(islice((each for each in ids if place_of(store, each) == place), most))


async def as_soon_as_possible(call: Callable[[], Awaitable[T]]) -> T:
    """Return the answer once there is one."""
    with anyio.fail_after(20):
        while True:
            with suppress(StoreUnavailable):
                return await call()
            await anyio.lowlevel.checkpoint()


def cluster_command(node: RedisServer, *arguments: str | int) -> str:
    with node.client() as client:
        said = client.execute_command("CLUSTER", *arguments)
        return said.decode() if isinstance(said, bytes) else str(said)


async def test_the_session_limit_holds_over_all_nodes(cluster: list[RedisServer], clock: FakeClock) -> None:
    limits = StoreLimits(sessions=20)
    async with RedisStore(url_of(cluster), prefix=f"test-{uuid4()}:", clock=clock, limits=limits) as store:
        records = [new_session(clock, f"s{number}") for number in range(60)]
        await together([partial(store.create_session, record) for record in records])
        listed = (await store.list_sessions()).sessions
        assert len(listed) == await store.count_sessions() == 20
        assert {place_of(store, each.id) for each in listed} == {0, 1, 2}


async def test_a_client_passed_in_is_used_and_not_closed(
    cluster: list[RedisServer], clock: FakeClock
) -> None:
    async with RedisCluster("127.0.0.1", cluster[0].port) as client:
        async with RedisStore(client, prefix=f"test-{uuid4()}:", clock=clock) as store:
            for number in range(9):
                await store.create_session(new_session(clock, f"s{number}"))
            assert len(await store.get_sessions_batch(f"s{number}" for number in range(9))) == 9
        assert await client.ping()


@pytest.mark.parametrize("first", ["read", "write", "batch"])
async def test_a_slot_that_moved_is_found(
    cluster: list[RedisServer], clustered: RedisStore, clock: FakeClock, first: str
) -> None:
    (session_id,) = ids_on(clustered, 1)
    (other,) = ids_on(clustered, 0)
    await clustered.create_session(new_session(clock, other))
    await add_raws(clustered, b"0", session_id=other)
    slot = key_slot(clustered._keys(session_id)[0].encode())
    # The client knows of the old place: it is to be told of the new one by the old.
    assert await clustered.get_session(session_id) is None
    new_owner = cluster_command(cluster[2], "MYID")
    for node in (cluster[2], cluster[1], cluster[0]):
        cluster_command(node, "SETSLOT", slot, "NODE", new_owner)
    try:
        if first == "read":
            assert await clustered.get_frames(session_id) == []
        elif first == "batch":
            frames = [new_frame(b"1", session_id), new_frame(b"1", other)]
            assert await clustered.add_frames(frames) == [0, 2]
        await clustered.create_session(new_session(clock, session_id))
        assert await add_raws(clustered, b"1", session_id=session_id) == [1]
        assert raws(await clustered.get_frames(session_id)) == [b"1"]
        with cluster[2].client() as client:
            assert client.exists(clustered._keys(session_id)[0])
        await clustered.delete_session(session_id)
    finally:
        old_owner = cluster_command(cluster[1], "MYID")
        for node in (cluster[1], cluster[2], cluster[0]):
            cluster_command(node, "SETSLOT", slot, "NODE", old_owner)


async def test_a_slot_that_moves_on_and_on_is_not_followed_for_ever(
    cluster: list[RedisServer], clustered: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowcat_stores._redis.servers._REDIRECTIONS", 1)
    (session_id,) = ids_on(clustered, 1)
    slot = key_slot(clustered._keys(session_id)[0].encode())
    owners = [cluster_command(node, "MYID") for node in cluster]
    assert await clustered.get_session(session_id) is None
    for owner in (owners[2], owners[1]):
        for node in (cluster[2], cluster[1], cluster[0]):
            cluster_command(node, "SETSLOT", slot, "NODE", owner)
        with pytest.raises(StoreUnavailable, match="try again when that is done"):
            await clustered.get_session(session_id)
        assert await clustered.get_session(session_id) is None


async def test_a_slot_on_the_move_is_followed_as_far_as_it_can_be(
    cluster: list[RedisServer], clustered: RedisStore, clock: FakeClock
) -> None:
    (session_id,) = ids_on(clustered, 1)
    slot = key_slot(clustered._keys(session_id)[0].encode())
    here, there = (cluster_command(cluster[place], "MYID") for place in (1, 2))
    cluster_command(cluster[2], "SETSLOT", slot, "IMPORTING", here)
    cluster_command(cluster[1], "SETSLOT", slot, "MIGRATING", there)
    try:
        assert await clustered.get_session(session_id) is None
        for refused in (
            partial(clustered.create_session, new_session(clock, session_id)),
            partial(clustered.get_frames, session_id),
        ):
            with pytest.raises(StoreUnavailable, match="moving the session's slot"):
                await refused()
    finally:
        for place in (1, 2):
            cluster_command(cluster[place], "SETSLOT", slot, "STABLE")
    await clustered.create_session(new_session(clock, session_id))


async def test_what_the_other_nodes_have_goes_on_when_one_dies(
    own_cluster: list[RedisServer], clock: FakeClock
) -> None:
    async with RedisStore(url_of(own_cluster), clock=clock, timeout=1.0) as store:
        dead = (key_slot(store._index.key.encode()) * 3 // SLOTS + 1) % 3
        living = (dead + 1) % 3
        (gone,), kept = ids_on(store, dead), ids_on(store, living, 3)
        for session_id in (gone, *kept):
            await store.create_session(new_session(clock, session_id))
        batch = [new_frame(b"%d" % number, each) for number, each in enumerate((kept[0], gone, *kept))]
        own_cluster[dead].kill()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="see whether it runs"):
                await store.add_frames(batch)
        with pytest.raises(StoreUnavailable):
            await store.get_session(gone)
        assert [await store.get_session(each) is not None for each in kept] == [True] * 3
        own_cluster[dead].start()
        stored = await as_soon_as_possible(partial(store.add_frames, batch))
        # What the living ones had taken is there once; the dead one came back empty.
        assert stored == [1, 0, 2, 1, 1]
        assert raws(await store.get_frames(kept[0])) == [b"0", b"2"]


async def test_a_node_that_hangs_is_unavailable_in_time_and_learned_of(
    own_cluster: list[RedisServer], clock: FakeClock
) -> None:
    async with RedisStore(url_of(own_cluster), clock=clock, timeout=0.5) as store:
        hanging = (key_slot(store._index.key.encode()) * 3 // SLOTS + 1) % 3
        (session_id,), (other,) = ids_on(store, hanging), ids_on(store, (hanging + 1) % 3)
        for each in (session_id, other):
            await store.create_session(new_session(clock, each))
        own_cluster[hanging].pause()
        with anyio.fail_after(1.5):
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await store.get_session(session_id)
            assert await store.get_session(other) is not None
        server = store._connected()
        assert isinstance(server, ClusterServer)
        assert server._learning
        own_cluster[hanging].resume()
        assert await as_soon_as_possible(partial(store.get_session, session_id)) is not None


async def test_a_cluster_that_is_gone_says_so(own_cluster: list[RedisServer], clock: FakeClock) -> None:
    async with RedisStore(url_of(own_cluster), clock=clock, timeout=0.5) as store:
        await store.ping()
        for node in own_cluster:
            node.kill()
        with pytest.raises(StoreUnavailable, match="see whether it runs"):
            await store.ping()
    with pytest.raises(StoreUnavailable, match="see whether"):
        await RedisStore(url_of(own_cluster), clock=clock, timeout=0.5).open()
