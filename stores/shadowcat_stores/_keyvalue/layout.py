"""Under which keys `KeyValueStore` keeps what.

    c                       how many sessions there are, and were
    o <number>              which session was created as which
    x <expiry> <number>     which session may have expired by when
    s <session>             the record
    h <session>             the head of all the rest that belongs to it:
    f <session> <seq>       a frame
    t <session> <stream>    a stream
    u <session> <use>       which stream was used when

Sessions and streams go by a digest of their id, so that a key has at most 33 bytes however long an id is.

Whatever belongs to a session changes only in one step with its record or its head, and no record is kept like
that of a former session with its id. So who finds these two unchanged when it commits has missed nothing of
what it read under the other keys.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TypeVar

import msgspec

from shadowcat_stores.errors import StoreUnavailable
from shadowcat_stores.records import Session

NEVER = float("-inf")
COUNTERS = b"c"
END = b"\xff" * 17
"""After a prefix it sorts behind every key that has this prefix."""

T = TypeVar("T")


class Counters(msgspec.Struct):
    """What is known of all sessions together."""

    live: int = 0
    last: int = 0
    """The number of the one created last."""


class Kept(msgspec.Struct):
    """A session's record, and where the indexes have it."""

    record: Session
    number: int
    indexed: float
    """The expiry it is indexed by: that of the record, or an earlier one."""


class Head(msgspec.Struct):
    """What is known of a session's frames and streams together."""

    seq: int = 0
    dropped: int = 0
    """The seq up to which the frames are gone."""
    bytes: int = 0
    streams: int = 0
    uses: int = 0
    tokens: int = 0


class Stream(msgspec.Struct):
    """What a session knows of one of its streams."""

    used: int = 0
    event_id: str | None = None
    owner: str = ""
    token: int = 0
    leased_until: float = NEVER


def place_of(name: str) -> bytes:
    """Return what an id is called in keys."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def key(kind: bytes, *parts: bytes | int) -> bytes:
    """Return the key of the kind; numbers sort by what they are."""
    return kind + b"".join(each.to_bytes(8) if isinstance(each, int) else each for each in parts)


def expiry_key(expires_at: float, *parts: int) -> bytes:
    """Return a key of the index by expiry. Bytes of positive floats sort as the floats do."""
    return key(b"x", struct.pack(">d", max(0.0, expires_at)), *parts)


def encode(value: object) -> bytes:
    """Return what is kept for a value."""
    return msgspec.msgpack.encode(value)


def decode(data: bytes, as_a: type[T]) -> T:
    """Return the value that is kept so.

    Raises:
        StoreUnavailable: it was not written by this class.
    """
    try:
        return msgspec.msgpack.decode(data, type=as_a)
    except msgspec.MsgspecError as exc:
        raise StoreUnavailable(
            f"what the backend holds is no {as_a.__name__}: give the store a place of its own"
        ) from exc
