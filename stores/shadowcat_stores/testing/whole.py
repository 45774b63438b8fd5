"""Clause 3: what was stored comes back whole, whatever it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowcat_stores.base import SessionStore
from shadowcat_stores.records import Frame, MessageEnvelope, Session, StoreLimits
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import ContractBase, clause, new_frame, new_session

_FOREVER = 1e12
_VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
_PUNCTUATION = st.sampled_from(list(":{}*?/\\%_'\";,|[]-~"))
_TEXT = st.text(max_size=50)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_INTS = st.integers(-(2**63), 2**63 - 1)
IDS = st.one_of(st.text(_VISIBLE, min_size=1, max_size=128), st.text(_PUNCTUATION, min_size=1, max_size=8))
"""Ids of visible ASCII, many of them of what means something in keys, patterns and queries."""

SESSIONS = st.builds(
    Session,
    id=IDS,
    created_at=_FLOATS,
    expires_at=st.floats(min_value=_FOREVER, allow_infinity=False),
    upstream=_TEXT,
    upstream_session_id=st.none() | IDS,
    message_endpoint=_TEXT,
    protocol_version=st.none() | _TEXT,
    principal=_TEXT,
    credentials=st.lists(_TEXT, max_size=3).map(tuple),
    initialize=st.binary(max_size=200),
    server_info=st.binary(max_size=200),
    server_capabilities=st.binary(max_size=200),
    log_level=_TEXT,
    subscriptions=st.lists(_TEXT, max_size=3).map(tuple),
    labels=st.dictionaries(_TEXT, _TEXT, max_size=4),
)
"""Records with anything in them that a record may hold."""

_ENVELOPES = st.builds(
    MessageEnvelope,
    raw=st.binary(max_size=300),
    kind=st.sampled_from(["request", "notification", "response", "error", "other"]),
    method=st.none() | _TEXT,
    id=st.one_of(st.none(), _INTS, _FLOATS, _TEXT),
)
FRAMES = st.builds(
    Frame,
    session_id=st.just(""),
    direction=st.sampled_from(["client", "server"]),
    envelope=_ENVELOPES,
    at=_FLOATS,
    stream=st.none() | IDS,
    position=st.integers(0, 2**53),
    event=st.none() | _TEXT,
    event_id=st.none() | _TEXT,
    token=st.integers(0, 2**53),
)
"""Frames with anything in them that a frame may hold, of no session yet."""


class WholeClause(ContractBase):
    """The tests of the clause that nothing is lost or changed on the way."""

    @clause(3)
    def test_any_record_comes_back_equal(self) -> None:
        async def check(store: SessionStore, session: Session) -> None:
            stored = await store.create_session(session)
            assert _but_for_revision(stored) == _but_for_revision(session)
            assert await store.get_session(session.id) == stored
            assert await store.get_sessions_batch([session.id]) == {session.id: stored}
            assert (await store.list_sessions()).sessions == [stored]
            assert (await store.list_sessions(upstream=session.upstream)).sessions == [stored]
            updated = await store.update_session(stored)
            assert _but_for_revision(updated) == _but_for_revision(session)
            assert await store.delete_session(session.id) is True

        self._for_any(check, SESSIONS)

    @clause(3)
    def test_any_frames_come_back_equal(self) -> None:
        async def check(store: SessionStore, session_id: str, frames: list[Frame]) -> None:
            await store.create_session(Session(id=session_id, created_at=1.0, expires_at=_FOREVER))
            wanted = [_placed(frame, session_id, seq) for seq, frame in enumerate(frames, 1)]
            assert await store.add_frame(wanted[0]) == 1
            assert await store.add_frames(wanted[1:]) == list(range(2, len(wanted) + 1))
            found = await store.get_frames(session_id)
            assert found == wanted
            assert [type(frame.envelope.id) for frame in found] == [type(f.envelope.id) for f in wanted]
            stream = wanted[-1].stream
            if stream is not None:
                of_it = [frame for frame in wanted if frame.stream == stream]
                assert await store.get_frames(session_id, stream=stream) == of_it
            assert await store.delete_session(session_id) is True

        self._for_any(check, IDS, st.lists(FRAMES, min_size=1, max_size=3))

    @clause(3)
    def test_any_streams_and_event_ids_are_told_apart(self) -> None:
        async def check(store: SessionStore, session_id: str, event_ids: dict[str, str]) -> None:
            await store.create_session(Session(id=session_id, created_at=1.0, expires_at=_FOREVER))
            for stream, event_id in event_ids.items():
                await store.store_last_event_id(session_id, event_id, stream=stream)
                claim = await store.claim_stream(session_id, stream, owner=event_id, lease=60.0)
                assert claim is not None
            for stream, event_id in event_ids.items():
                assert await store.get_last_event_id(session_id, stream=stream) == event_id
                claim = await store.get_stream_claim(session_id, stream)
                assert claim is not None
                assert claim.owner == event_id
            assert await store.delete_session(session_id) is True

        self._for_any(check, IDS, st.dictionaries(IDS, _TEXT, min_size=1, max_size=5))

    @clause(3)
    def test_any_ids_are_told_apart(self) -> None:
        async def check(store: SessionStore, session_ids: list[str]) -> None:
            for each in session_ids:
                await store.create_session(Session(id=each, created_at=1.0, expires_at=_FOREVER))
                assert await store.add_frame(new_frame(each.encode(), each)) == 1
            for each in session_ids:
                assert [frame.envelope.raw for frame in await store.get_frames(each)] == [each.encode()]
                assert await store.delete_session(each) is True
                assert await store.get_session(each) is None
            assert await store.count_sessions() == 0

        self._for_any(check, st.lists(IDS, min_size=2, max_size=5, unique=True))

    @clause(3)
    async def test_large_values_come_back_equal(self, store: SessionStore, clock: FakeClock) -> None:
        large = bytes(range(256)) * 4096
        session = new_session(clock, "s" * 1024, initialize=large, labels={"large": "é" * 100_000})
        stored = await store.create_session(session)
        assert await store.get_session(session.id) == stored
        assert stored.initialize == large
        await store.add_frame(new_frame(large, session.id))
        await store.add_frames([new_frame(large[::-1], session.id)])
        first, second = await store.get_frames(session.id)
        assert first.envelope.raw == large
        assert second.envelope.raw == large[::-1]

    @clause(3)
    @pytest.mark.parametrize("labels", [{}, {"a": "1"}])
    async def test_a_record_handed_in_or_out_is_the_callers_own(
        self, store: SessionStore, clock: FakeClock, labels: dict[str, str]
    ) -> None:
        given_labels = dict(labels)
        session = new_session(clock, labels=given_labels)
        created = await store.create_session(session)
        updated = await store.update_session(created)
        read = await store.get_session("session-1")
        assert read is not None
        batch = await store.get_sessions_batch(["session-1"])
        page = await store.list_sessions()
        for each in (session, created, updated, read, batch["session-1"], page.sessions[0]):
            each.labels["b"] = "2"
        again = await store.get_session("session-1")
        assert again is not None
        assert again.labels == dict(labels)

    def _for_any(self, check: Callable[..., Awaitable[None]], *values: st.SearchStrategy[Any]) -> None:
        """Run the check on a store for many examples; it leaves the store empty for the next one."""

        async def once(*example: Any) -> None:
            async with await self.make_store(FakeClock(), StoreLimits()) as store:
                for left_over in (await store.list_sessions()).sessions:
                    # Of an example that failed.
                    await store.delete_session(left_over.id)
                with anyio.fail_after(self.patience):
                    await check(store, *example)

        # A function of its own for each call: Hypothesis refuses one that several test classes inherit.
        @settings(max_examples=self.examples, deadline=None, database=None)
        @given(st.tuples(*values))
        def examples(example: tuple[Any, ...]) -> None:
            anyio.run(once, *example)

        examples()


def _but_for_revision(session: Session) -> tuple[Any, ...]:
    return tuple(getattr(session, name) for name in session.__struct_fields__ if name != "revision")


def _placed(frame: Frame, session_id: str, seq: int) -> Frame:
    fields = {name: getattr(frame, name) for name in frame.__struct_fields__}
    return Frame(**{**fields, "session_id": session_id, "seq": seq})
