"""Every verb of a store that takes a session's id, and what it answers where that session is absent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import SessionNotFound
from shadowcat_stores.records import Session
from shadowcat_stores.testing.harness import list_all, new_frame, take

_LATER = 4_000_000_000.0


class Verb(msgspec.Struct, frozen=True):
    """One verb, ready to be called for a session, and its answer where there is no session at all."""

    name: str
    call: Callable[[SessionStore, str], Awaitable[object]]
    absent: object


async def answer(verb: Verb, store: SessionStore, session_id: str) -> object:
    """Return what the verb answers, be it a value or the class of the exception it raises."""
    try:
        return await verb.call(store, session_id)
    except Exception as error:  # noqa: BLE001 - whatever escapes is the answer that is being tested
        return type(error)


def _record(session_id: str) -> Session:
    return Session(id=session_id, created_at=1.0, expires_at=_LATER, revision=1)


VERBS = [
    Verb("get_session", lambda s, id: s.get_session(id), None),
    Verb("get_sessions_batch", lambda s, id: s.get_sessions_batch([id]), {}),
    Verb("update_session", lambda s, id: s.update_session(_record(id)), SessionNotFound),
    Verb("update_sessions_batch", lambda s, id: s.update_sessions_batch([_record(id)]), {}),
    Verb("delete_session", lambda s, id: s.delete_session(id), False),
    Verb("touch_session", lambda s, id: s.touch_session(id, _LATER), False),
    Verb("count_sessions", lambda s, id: s.count_sessions(), 0),
    Verb("list_sessions", lambda s, id: list_all(s), []),
    Verb("add_frame", lambda s, id: s.add_frame(new_frame(session_id=id)), SessionNotFound),
    Verb("add_frames", lambda s, id: s.add_frames([new_frame(session_id=id)]), [0]),
    Verb("get_frames", lambda s, id: s.get_frames(id), []),
    Verb("delete_frames", lambda s, id: s.delete_frames(id), 0),
    Verb("follow_frames", lambda s, id: take(s, 1, id), []),
    Verb("store_last_event_id", lambda s, id: s.store_last_event_id(id, "e", stream="t"), SessionNotFound),
    Verb("get_last_event_id", lambda s, id: s.get_last_event_id(id, stream="t"), None),
    Verb("claim_stream", lambda s, id: s.claim_stream(id, "t", owner="me", lease=9.0), SessionNotFound),
    Verb("release_stream", lambda s, id: s.release_stream(id, "t", token=1), False),
    Verb("get_stream_claim", lambda s, id: s.get_stream_claim(id, "t"), None),
]
"""All verbs that need an open store, `ping` apart."""
