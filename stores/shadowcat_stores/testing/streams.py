"""Clauses about a session's streams: 14 and 16, and 12 as far as it bounds them."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import SessionNotFound
from shadowcat_stores.records import GET_STREAM, StoreLimits, StreamClaim, Window
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import (
    ContractBase,
    add_raws,
    clause,
    new_frame,
    new_session,
    raws,
    together,
)


class StreamClauses(ContractBase):
    """The tests of the clauses about a session's streams."""

    # -- 14. last event ids -------------------------------------------------------------------------

    @clause(14)
    async def test_last_event_ids_are_kept_per_stream(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        await store.create_session(new_session(clock, "session-2"))
        assert await store.get_last_event_id("session-1") is None
        await store.store_last_event_id("session-1", "g1")
        await store.store_last_event_id("session-1", "p1", stream="post")
        await store.store_last_event_id("session-1", "p2", stream="post")
        assert await store.get_last_event_id("session-1") == "g1"
        assert await store.get_last_event_id("session-1", stream=GET_STREAM) == "g1"
        assert await store.get_last_event_id("session-1", stream="post") == "p2"
        assert await store.get_last_event_id("session-1", stream="other") is None
        assert await store.get_last_event_id("session-2") is None

    @clause(14)
    async def test_no_last_event_id_is_stored_for_an_absent_session(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        with pytest.raises(SessionNotFound):
            await store.store_last_event_id("session-1", "e")
        await store.create_session(new_session(clock))
        assert await store.get_last_event_id("session-1") is None

    @clause(14)
    async def test_a_frame_of_the_servers_stores_its_event_id(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await store.store_last_event_id("session-1", "e0", stream="t")
        await store.add_frame(new_frame(stream="t", event_id="e1"))
        assert await store.get_last_event_id("session-1", stream="t") == "e1"
        await store.add_frames([new_frame(stream="t", event_id=each) for each in ("e2", "e3")])
        assert await store.get_last_event_id("session-1", stream="t") == "e3"
        await store.add_frame(new_frame(stream=GET_STREAM, event_id="g1"))
        assert await store.get_last_event_id("session-1") == "g1"
        assert await store.get_last_event_id("session-1", stream="t") == "e3"

    @clause(14)
    async def test_no_other_frame_changes_a_last_event_id(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await store.store_last_event_id("session-1", "e0", stream="t")
        await store.store_last_event_id("session-1", "g0")
        others = [
            new_frame(stream="t"),
            new_frame(event_id="e1"),
            new_frame(stream="t", event_id="e1", direction="client"),
        ]
        for frame in others:
            await store.add_frame(frame)
        await store.add_frames(others)
        assert await store.get_last_event_id("session-1", stream="t") == "e0"
        assert await store.get_last_event_id("session-1") == "g0"

    @clause(14)
    async def test_last_event_ids_outlive_the_frames(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        await store.add_frame(new_frame(stream="t", event_id="e1"))
        await store.add_frame(new_frame(), keep=Window(frames=1))
        assert await store.get_last_event_id("session-1", stream="t") == "e1"
        await store.delete_frames("session-1")
        assert await store.get_last_event_id("session-1", stream="t") == "e1"

    # -- 12. bounded --------------------------------------------------------------------------------

    @clause(12)
    async def test_the_stream_least_recently_stored_is_forgotten_first(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(streams=3)) as store:
            await store.create_session(new_session(clock))
            await store.create_session(new_session(clock, "session-2"))
            await store.store_last_event_id("session-2", "e", stream="a")
            for stream in ("a", "b", "c"):
                await store.store_last_event_id("session-1", f"e-{stream}", stream=stream)
            # Reading changes nothing, and neither does a frame that stores no event id.
            assert await _known_streams(store, "abc") == "abc"
            await add_raws(store, b"1", stream="b")
            await store.store_last_event_id("session-1", "e-a", stream="a")
            await add_raws(store, b"2", stream="d", event_id="e-d")
            assert await _known_streams(store, "abcd") == "acd"
            await store.add_frames([new_frame(stream=each, event_id=f"e-{each}") for each in "aefg"])
            assert await _known_streams(store, "abcdefg") == "efg"
            assert await store.get_last_event_id("session-2", stream="a") == "e"

    @clause(12)
    async def test_many_streams_are_bounded_under_concurrent_writers(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(streams=2)) as store:
            await store.create_session(new_session(clock))
            names = "abcdefghij"
            frames = [new_frame(stream=each, event_id=f"e-{each}") for each in names]
            await together([partial(store.add_frame, frame) for frame in frames])
            assert len(await _known_streams(store, names)) == 2

    @clause(12)
    async def test_a_stream_whose_lease_runs_is_not_forgotten(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(streams=2)) as store:
            await store.create_session(new_session(clock, ttl=1e6))
            claims = {
                stream: await store.claim_stream("session-1", stream, owner="me", lease=30.0)
                for stream in ("a", "b")
            }
            await store.store_last_event_id("session-1", "e-a", stream="a")
            for stream in ("c", "d"):
                await store.store_last_event_id("session-1", f"e-{stream}", stream=stream)
                assert await store.get_last_event_id("session-1", stream=stream) == f"e-{stream}"
            for stream, claim in claims.items():
                assert await store.get_stream_claim("session-1", stream) == claim
            assert await _known_streams(store, "abcd") == "ad"
            clock.advance(20)
            await store.claim_stream("session-1", "b", owner="me", lease=30.0)
            clock.advance(10)
            await store.store_last_event_id("session-1", "e-f", stream="f")
            assert await _known_streams(store, "adf") == "f"
            renewed = await store.get_stream_claim("session-1", "b")
            assert renewed is not None
            assert renewed.expires_at == clock() + 20

    @clause(12)
    async def test_no_limit_of_streams_is_no_limit(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(streams=None)) as store:
            await store.create_session(new_session(clock))
            names = [f"t{number}" for number in range(50)]
            await store.add_frames([new_frame(stream=each, event_id=f"e-{each}") for each in names])
            assert await store.get_last_event_id("session-1", stream="t0") == "e-t0"

    # -- 16. ownership ------------------------------------------------------------------------------

    @clause(16)
    async def test_one_owner_while_the_lease_runs(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        assert await store.get_stream_claim("session-1", "t") is None
        claim = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert claim is not None
        assert claim == StreamClaim(owner="a", token=claim.token, expires_at=clock() + 30)
        assert claim.token > 0
        clock.advance(29.5)
        assert await store.claim_stream("session-1", "t", owner="b", lease=30.0) is None
        assert await store.get_stream_claim("session-1", "t") == claim
        clock.advance(0.5)
        assert await store.get_stream_claim("session-1", "t") is None
        taken = await store.claim_stream("session-1", "t", owner="b", lease=30.0)
        assert taken is not None
        assert (taken.owner, taken.token > claim.token) == ("b", True)
        assert await store.claim_stream("session-1", "t", owner="a", lease=30.0) is None

    @clause(16)
    async def test_renewing_keeps_the_token(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        claim = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert claim is not None
        clock.advance(20)
        renewed = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert renewed == replace(claim, expires_at=clock() + 30)
        clock.advance(29)
        assert await store.get_stream_claim("session-1", "t") == renewed

    @clause(16)
    async def test_every_claim_after_a_lease_gets_a_higher_token(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        tokens = []
        for owner in ("a", "a", "b", "b", "a"):
            claim = await store.claim_stream("session-1", "t", owner=owner, lease=30.0)
            assert claim is not None
            tokens.append(claim.token)
            if owner == "b":
                assert await store.release_stream("session-1", "t", token=claim.token) is True
            else:
                clock.advance(30)
        assert tokens == sorted(set(tokens))

    @clause(16)
    async def test_releasing_ends_the_claim_that_has_the_token(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        claim = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert claim is not None
        assert await store.release_stream("session-1", "t", token=claim.token + 1) is False
        assert await store.get_stream_claim("session-1", "t") == claim
        assert await store.release_stream("session-1", "t", token=claim.token) is True
        assert await store.get_stream_claim("session-1", "t") is None
        assert await store.release_stream("session-1", "t", token=claim.token) is False
        second = await store.claim_stream("session-1", "t", owner="b", lease=30.0)
        assert second is not None
        assert await store.release_stream("session-1", "t", token=claim.token) is False
        clock.advance(30)
        assert await store.release_stream("session-1", "t", token=second.token) is False

    @clause(16)
    async def test_one_of_many_concurrent_claims_wins(self, store: SessionStore, clock: FakeClock) -> None:
        await store.create_session(new_session(clock))
        claims = [
            partial(store.claim_stream, "session-1", "t", owner=f"o{number}", lease=30.0)
            for number in range(20)
        ]
        winners = [each for each in await together(claims) if each is not None]
        assert winners == [await store.get_stream_claim("session-1", "t")]

    @clause(16)
    async def test_claims_of_other_streams_and_sessions_are_other_claims(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock))
        await store.create_session(new_session(clock, "session-2"))
        for session_id, stream, owner in (
            ("session-1", "t", "a"),
            ("session-1", "u", "b"),
            ("session-2", "t", "c"),
        ):
            assert await store.claim_stream(session_id, stream, owner=owner, lease=30.0) is not None
        claim = await store.get_stream_claim("session-1", "t")
        assert claim is not None
        assert claim.owner == "a"

    @clause(16)
    async def test_a_frame_with_an_outdated_token_is_not_stored(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        former = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        clock.advance(30)
        latter = await store.claim_stream("session-1", "t", owner="b", lease=30.0)
        assert former is not None
        assert latter is not None
        stale = new_frame(b"stale", stream="t", token=former.token, event_id="stale")
        assert await store.add_frame(new_frame(b"1", stream="t", token=latter.token, event_id="e1")) == 1
        assert await store.add_frame(stale) == 0
        batch = [new_frame(b"2", stream="t", token=latter.token), stale, new_frame(b"3", stream="t")]
        assert await store.add_frames(batch) == [2, 0, 3]
        assert raws(await store.get_frames("session-1")) == [b"1", b"2", b"3"]
        assert await store.get_last_event_id("session-1", stream="t") == "e1"

    @clause(16)
    async def test_the_newest_token_writes_on_until_somebody_else_claims(
        self, store: SessionStore, clock: FakeClock
    ) -> None:
        await store.create_session(new_session(clock, ttl=1e6))
        claim = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
        assert claim is not None
        clock.advance(30)
        assert await add_raws(store, b"1", stream="t", token=claim.token) == [1]
        await store.claim_stream("session-1", "u", owner="b", lease=30.0)
        assert await add_raws(store, b"2", stream="t", token=claim.token) == [2]
        taken = await store.claim_stream("session-1", "t", owner="b", lease=30.0)
        assert taken is not None
        await store.release_stream("session-1", "t", token=taken.token)
        assert await add_raws(store, b"3", stream="t", token=claim.token) == [0]

    @clause(16)
    async def test_the_token_of_a_forgotten_claim_stores_nothing(self, clock: FakeClock) -> None:
        async with await self.make_store(clock, StoreLimits(streams=1)) as store:
            await store.create_session(new_session(clock, ttl=1e6))
            tokens = []
            for owner in ("a", "b"):
                claim = await store.claim_stream("session-1", "t", owner=owner, lease=30.0)
                assert claim is not None
                tokens.append(claim.token)
                clock.advance(30)
            stale = new_frame(b"stale", stream="t", token=tokens[0], event_id="stale")
            await store.store_last_event_id("session-1", "e", stream="u")
            assert await store.add_frame(stale) == 0
            # The stream is known again, its claims are not.
            await store.store_last_event_id("session-1", "e", stream="t")
            assert await store.add_frames([stale]) == [0]
            claim = await store.claim_stream("session-1", "t", owner="a", lease=30.0)
            assert claim is not None
            assert claim.token > tokens[1] > tokens[0]
            assert await store.add_frame(new_frame(b"1", stream="t", token=claim.token)) == 1
            assert await store.add_frame(stale) == 0
            assert await store.get_last_event_id("session-1", stream="t") == "e"


async def _known_streams(store: SessionStore, names: str) -> str:
    """Return those of the streams, of one letter each, whose last event id is known."""
    known = {each: await store.get_last_event_id("session-1", stream=each) for each in names}
    assert all(event_id in (None, f"e-{each}") for each, event_id in known.items())
    return "".join(each for each, event_id in known.items() if event_id is not None)
