"""Session records of busy clients: believed for a while, and no longer."""

from __future__ import annotations

from shadowcat import session_cache
from shadowcat.session_cache import SessionCache
from shadowcat_stores import MemoryStore, Session


class Wire(MemoryStore):
    """A store that counts how often it is asked, and says it is shared."""

    shared = True

    def __init__(self) -> None:
        super().__init__(clock=lambda: self.now)
        self.now = 0.0
        self.asked = 0

    async def get_session(self, session_id: str) -> Session | None:
        self.asked += 1
        return await super().get_session(session_id)


def session(session_id: str = "s", expires_at: float = 100.0) -> Session:
    return Session(id=session_id, created_at=0, expires_at=expires_at)


async def test_the_store_is_asked_once_in_a_while() -> None:
    now = 0.0
    async with Wire() as store:
        cache = SessionCache(store, 1.0, lambda: now)
        await store.create_session(session())
        for _ in range(10):
            assert await cache.get("s") is not None
        assert store.asked == 1
        await store.delete_session("s")  # by another replica
        assert await cache.get("s") is not None
        now = 1.0
        assert await cache.get("s") is None
        assert store.asked == 2


async def test_expiry_is_seen_at_once() -> None:
    async with Wire() as store:
        cache = SessionCache(store, 1000.0)
        await store.create_session(session(expires_at=5))
        assert await cache.get("s") is not None
        store.now = 5
        assert await cache.get("s") is None


async def test_an_absent_session_is_looked_for_each_time() -> None:
    async with Wire() as store:
        cache = SessionCache(store, 1000.0)
        assert await cache.get("s") is None
        await store.create_session(session())
        assert await cache.get("s") is not None
        cache.discard("s")
        cache.discard("s")
        await cache.get("s")
        assert store.asked == 3


async def test_a_store_in_this_process_is_always_asked() -> None:
    async with Wire() as store:
        store.shared = False  # type: ignore[misc]
        cache = SessionCache(store, 1000.0)
        await store.create_session(session())
        cache.put(session())
        await cache.get("s")
        await cache.get("s")
        assert store.asked == 2


async def test_the_cache_is_bounded() -> None:
    async with Wire() as store:
        cache = SessionCache(store, 1000.0)
        for number in range(session_cache._KEPT + 5):
            cache.put(session(str(number)))
        assert len(cache._read) == session_cache._KEPT
        assert await cache.get("5") is not None
        assert await cache.get("4") is None


async def test_a_session_that_lives_on_is_read_again_no_later() -> None:
    now = 0.0
    async with Wire() as store:
        cache = SessionCache(store, 1.0, lambda: now)
        await store.create_session(session(expires_at=5))
        await cache.get("s")
        now = 0.9
        cache.prolong("s", 50)
        cache.prolong("unknown", 50)
        store.now = 5
        found = await cache.get("s")
        assert found is not None
        assert found.expires_at == 50
        now = 1.0
        assert await cache.get("s") is None
