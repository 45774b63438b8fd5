"""What replicas tell each other of the streams that they read: each reads the tape of its own record.

A replica writes to another by appending a frame to that one's record in the store. Nothing is acknowledged:
mail gets lost with the record, and where the store does not take it. What has to arrive is said again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from shadowcat_stores import Frame, JsonRpcId, MessageEnvelope, SessionStore, StoreError, Window

LISTENING: Final = 4.0
"""Seconds that one who listens at another replica counts as listening; it says so at least twice within."""

_KEPT: Final = Window(frames=1000, bytes=256 * 1024)
"""Mail that waits for a replica which does not read."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """To a stream's owner: somebody listens to it at another replica, through the store."""

    session_id: str
    stream: str
    replica: str
    """Where."""
    listener: str
    """A name for who listens."""
    since: float
    """When that began, in seconds since the epoch: of two the newer one stays."""
    has: str | None = None
    """The id of the newest event that the listener has."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """From a stream's owner: a newer one listens, so end this one."""

    listener: str


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """To a stream's owner: its client has cancelled this request."""

    session_id: str
    stream: str
    request_id: JsonRpcId


Mail = Listen | Leave | Cancel
_decoder: Final[msgspec.json.Decoder[Mail]] = msgspec.json.Decoder(Mail)


def record_id(replica: str) -> str:
    """Return the id of the replica's record, whose tape has the mail to it."""
    return f"~{replica}"


async def send(store: SessionStore, replica: str, mail: Mail) -> None:
    """Write to the replica. What the store does not take is lost."""
    with suppress(StoreError):
        await store.add_frame(
            Frame(
                session_id=record_id(replica),
                direction="client",
                envelope=MessageEnvelope(msgspec.json.encode(mail), "other"),
                at=store.clock(),
            ),
            keep=_KEPT,
        )


def read(raw: bytes) -> Mail | None:
    """Return the message; `None` where this is none, or one of another version's."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
