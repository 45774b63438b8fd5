"""Frames on their way to the store, and which of them need not go there."""

from __future__ import annotations

from typing import Final

import msgspec

from shadowcat.readers import Notice
from shadowcat_stores import Frame, MessageEnvelope, Window

FRAME_OVERHEAD: Final = 300
"""Bytes a waiting frame takes besides its message, so that empty messages are bounded as well."""

NOT_READ: Final = MessageEnvelope(b"", "other")


class Waiting(msgspec.Struct):
    """A frame on its way to the store."""

    number: int
    """Which one it is of all that were recorded."""
    size: int
    frame: Frame
    """Without its message, where that is not read yet."""
    notice: Notice | None

    @property
    def event_id(self) -> str | None:
        """The id that its event has."""
        return self.frame.event_id if self.notice is None else self.notice.event_id

    def whole(self) -> Frame:
        """Return the frame, with its message."""
        notice = self.notice
        if notice is None:
            return self.frame
        unread = self.frame
        return Frame(
            session_id=unread.session_id,
            direction=unread.direction,
            envelope=notice.message,
            at=unread.at,
            stream=unread.stream,
            position=notice.position,
            event=notice.event,
            event_id=notice.event_id,
            token=unread.token,
        )


def without_outrun(waiting: list[Waiting], keep: Window) -> list[Waiting]:
    """Return those that newer ones do not push out of the window as soon as they are written.

    Newer ones of the same stream under the same claim: the store takes all of these, or none.
    """
    if keep.frames is None or keep.bytes is None:
        return waiting
    newer: dict[tuple[str, str | None, int], tuple[int, int, bool]] = {}
    kept: list[Waiting] = []
    for each in reversed(waiting):
        frame = each.frame
        stream = (frame.session_id, frame.stream, frame.token)
        count, length, has_id = newer.get(stream, (0, 0, False))
        length += each.size - FRAME_OVERHEAD
        is_out = count > 0 and (count >= keep.frames or length > keep.bytes)
        # The store remembers the last id of a stream also where its frame is gone.
        is_last_id = not has_id and each.event_id is not None
        newer[stream] = count + 1, length, has_id or is_last_id
        if is_last_id or not is_out:
            kept.append(each)
    kept.reverse()
    return kept
