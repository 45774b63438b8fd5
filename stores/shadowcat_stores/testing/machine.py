"""A state machine that drives a store and the model side by side and compares every answer."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import anyio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import StoreError
from shadowcat_stores.records import GET_STREAM, Frame, Session, StoreLimits, Window
from shadowcat_stores.testing.clock import FakeClock
from shadowcat_stores.testing.harness import list_all, new_frame, new_session, take
from shadowcat_stores.testing.model import StoreModel

T = TypeVar("T")
MakeStore: TypeAlias = Callable[[FakeClock, StoreLimits], Awaitable[SessionStore]]
"""Returns a store, not yet open, on an empty backend of its own."""

LIMITS = StoreLimits(sessions=2, frames=6, frame_bytes=40, streams=2)
"""Tight, so that every run meets them."""

_PATIENCE = 5.0
# Few values each, so that calls meet what earlier ones left behind.
_IDS = ["a", "a:b", "*"]
_ids = st.sampled_from(["a", "a", "a", *_IDS])
_STREAMS = [GET_STREAM, "t", "u"]
_streams = st.sampled_from(_STREAMS)
_maybe_stream = st.none() | _streams
_upstreams = st.sampled_from(["default", "other"])
_ttls = st.sampled_from([1000.0, 100.0, 50.0, 10.0, 0.0])
_texts = st.sampled_from(["", "x", "é"])
_owners = st.sampled_from(["me", "you"])
_revisions = st.sampled_from([-1, 0, 0, 0, 1])
_tokens = st.sampled_from([1, 0, 0, 2])
_windows = st.none() | st.builds(
    Window, frames=st.none() | st.integers(0, 5), bytes=st.none() | st.integers(0, 40)
)
_frames = st.builds(
    new_frame,
    raw=st.binary(max_size=20),
    session_id=_ids,
    direction=st.sampled_from(["client", "server"]),
    stream=_maybe_stream,
    event_id=st.none() | st.sampled_from(["e1", "e2"]),
    token=_tokens,
)


class StoreMachine(RuleBasedStateMachine):
    """Calls any verb with any argument; the store's answer must be the model's."""

    make_store: MakeStore

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model = StoreModel(self.clock, LIMITS)
        # One loop for all steps of an example: connections and threads of a store belong to a loop.
        self.runner = asyncio.Runner()
        self.store = self.run_bounded(self.opened())

    async def opened(self) -> SessionStore:
        store = await type(self).make_store(self.clock, LIMITS)
        await store.open()
        return store

    def teardown(self) -> None:
        try:
            self.look_at_everything()
        finally:
            self.run_bounded(self.store.aclose())
            self.runner.close()

    @rule()
    def look_at_everything(self) -> None:
        # At the end and now and then, not after each step: a look clears expired sessions away, and the
        # verbs that write have to find out by themselves.
        for session_id in _IDS:
            self.same("get_session", session_id)
            self.same("get_frames", session_id)
            for stream in _STREAMS:
                self.same("get_last_event_id", session_id, stream=stream)
                self.same("get_stream_claim", session_id, stream)
        self.same("get_sessions_batch", _IDS)
        self.same("count_sessions")

    def run_bounded(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            with anyio.fail_after(_PATIENCE):
                return await work

        return self.runner.run(bounded())

    def same(self, verb: str, *args: Any, **kwargs: Any) -> None:
        async def ask_store() -> object:
            try:
                return await getattr(self.store, verb)(*args, **kwargs)
            except StoreError as error:
                return type(error)

        try:
            expected: object = getattr(self.model, verb)(*args, **kwargs)
        except StoreError as error:
            expected = type(error)
        assert self.run_bounded(ask_store()) == expected, verb

    def changed(self, session_id: str, ttl: float, revision: int, principal: str) -> Session:
        current = self.model.get_session(session_id) or new_session(self.clock, session_id)
        expires_at = self.clock() + ttl
        return replace(
            current, expires_at=expires_at, revision=current.revision + revision, principal=principal
        )

    @initialize()
    def begin(self) -> None:
        self.create_all(1000.0)

    def create_all(self, ttl: float) -> None:
        # Left to chance alone, most sessions would be absent most of the time.
        for session_id in _IDS:
            self.same("create_session", new_session(self.clock, session_id, ttl=ttl))

    @rule(seconds=st.sampled_from([1, 10, 10, 50]), refill=st.booleans(), ttl=_ttls)
    def advance(self, seconds: int, refill: bool, ttl: float) -> None:
        self.clock.advance(seconds)
        if refill:
            self.create_all(ttl)

    @rule(session_id=_ids, ttl=_ttls, upstream=_upstreams)
    def create(self, session_id: str, ttl: float, upstream: str) -> None:
        record = new_session(self.clock, session_id, ttl=ttl, upstream=upstream, labels={"a": "1"})
        self.same("create_session", record)

    @rule(session_id=_ids, ttl=_ttls, revision=_revisions, principal=_texts)
    def update(self, session_id: str, ttl: float, revision: int, principal: str) -> None:
        self.same("update_session", self.changed(session_id, ttl, revision, principal))

    @rule(items=st.lists(st.tuples(_ids, _ttls, _revisions, _texts), max_size=4))
    def update_batch(self, items: list[tuple[str, float, int, str]]) -> None:
        self.same("update_sessions_batch", [self.changed(*item) for item in items])

    @rule(session_id=_ids, refill=st.booleans(), ttl=_ttls)
    def delete(self, session_id: str, refill: bool, ttl: float) -> None:
        self.same("delete_session", session_id)
        if refill:
            self.create_all(ttl)

    @rule(session_id=_ids, ttl=_ttls)
    def touch(self, session_id: str, ttl: float) -> None:
        self.same("touch_session", session_id, self.clock() + ttl)

    @rule(limit=st.integers(1, 5), upstream=st.none() | _upstreams)
    def list_pages(self, limit: int, upstream: str | None) -> None:
        listed = self.run_bounded(list_all(self.store, limit=limit, upstream=upstream))
        assert listed == self.model.all_sessions(upstream)

    @rule(frame=_frames, keep=_windows)
    def add_frame(self, frame: Frame, keep: Window | None) -> None:
        self.same("add_frame", frame, keep=keep)

    @rule(frames=st.lists(_frames, max_size=5), keep=_windows)
    def add_frames(self, frames: list[Frame], keep: Window | None) -> None:
        self.same("add_frames", frames, keep=keep)

    @rule(
        session_id=_ids,
        stream=_maybe_stream,
        after=st.integers(0, 9),
        limit=st.none() | st.integers(1, 4),
    )
    def get_frames(self, session_id: str, stream: str | None, after: int, limit: int | None) -> None:
        self.same("get_frames", session_id, stream=stream, after=after, limit=limit)

    @rule(session_id=_ids)
    def delete_frames(self, session_id: str) -> None:
        self.same("delete_frames", session_id)

    @rule(session_id=_ids, stream=_maybe_stream, after=st.integers(0, 9))
    def follow(self, session_id: str, stream: str | None, after: int) -> None:
        expected = self.model.get_frames(session_id, stream=stream, after=after)
        followed = take(self.store, len(expected), session_id, stream=stream, after=after)
        assert self.run_bounded(followed) == expected

    @rule(session_id=_ids, event_id=_texts, stream=_streams)
    def store_last_event_id(self, session_id: str, event_id: str, stream: str) -> None:
        self.same("store_last_event_id", session_id, event_id, stream=stream)

    @rule(session_id=_ids, stream=_streams, owner=_owners, lease=_ttls)
    def claim(self, session_id: str, stream: str, owner: str, lease: float) -> None:
        self.same("claim_stream", session_id, stream, owner=owner, lease=lease)

    @rule(session_id=_ids, stream=_streams, token=_tokens)
    def release(self, session_id: str, stream: str, token: int) -> None:
        self.same("release_stream", session_id, stream, token=token)


def store_state_machine(
    make_store: MakeStore, *, examples: int = 100, steps: int = 30
) -> type[unittest.TestCase]:
    """Return a test case that compares the store with a plain model of one over random histories.

    Bind it to a name that pytest collects: `TestMyStoreAsAMachine = store_state_machine(make_store)`.

    Args:
        make_store: called for each example, in the loop the store is used in; its backend must be empty.
        examples: how many histories.
        steps: how many calls a history has at most.
    """
    machine = type("Machine", (StoreMachine,), {"make_store": staticmethod(make_store)})
    case: type[unittest.TestCase] = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(  # type: ignore[attr-defined]
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    return case
