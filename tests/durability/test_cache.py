"""Sessions that another replica has deleted, where a record of them is still believed."""

from __future__ import annotations

from shadowcat_stores import MemoryStore
from tests.support.proxying import proxied
from tests.support.upstream import ScriptedUpstream


class Shared(MemoryStore):
    """A store that says another process may change it, and whose time is set by the test."""

    shared = True

    def __init__(self) -> None:
        super().__init__(clock=lambda: self.now)
        self.now = 1000.0


async def test_to_let_a_session_live_on_finds_out_that_it_is_gone(upstream: ScriptedUpstream) -> None:
    store = Shared()
    async with proxied(upstream.url, store, session_cache=1000, session_ttl=100) as proxy:
        await proxy.begin()
        assert (await proxy.call()).status_code == 200
        await store.delete_session(proxy.session_id)
        store.now += 20
        assert (await proxy.call()).status_code == 404
        assert (await proxy.call()).status_code == 404
    assert len(upstream.forwarded) == 1


async def test_a_session_deleted_here_is_gone_here_at_once(upstream: ScriptedUpstream) -> None:
    async with proxied(upstream.url, Shared(), session_cache=1000) as proxy:
        await proxy.begin()
        assert (await proxy.call()).status_code == 200
        response = await proxy.client.delete(proxy.url, headers={"Mcp-Session-Id": proxy.session_id})
        assert response.status_code == 200
        assert (await proxy.call()).status_code == 404
