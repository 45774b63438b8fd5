"""A client's place on a tape that is still being written."""

from __future__ import annotations

import json

from shadowcat.replay import find_cursor
from shadowcat_stores import Frame, MemoryStore, MessageEnvelope, Session

STREAM = "s.AAAAAAAA.MQ"


def event(position: int) -> Frame:
    note = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": position}).encode()
    message = MessageEnvelope(note, "notification", "notifications/message")
    return Frame(session_id="s", direction="server", envelope=message, at=0, stream=STREAM, position=position)


async def test_events_that_reach_the_tape_after_their_client_came_back_are_not_sent_again() -> None:
    async with MemoryStore() as store:
        now = store.clock()
        await store.create_session(Session(id="s", created_at=now, expires_at=now + 60, upstream="default"))
        await store.add_frame(event(1))
        cursor = await find_cursor(store, "s", f"{STREAM}-3")
        assert cursor is not None
        await store.add_frames([event(2), event(3), event(4)])
        frames = await store.get_frames("s", stream=STREAM, after=cursor.seq)
        sent = b"".join(cursor.advance(frames))
        assert [line for line in sent.splitlines() if line.startswith(b"id:")] == [
            b"id: " + f"{STREAM}-4".encode()
        ]
        assert not cursor.has_gap
