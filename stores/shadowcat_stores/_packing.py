"""How frames lie in a store: many of them packed into one entry of their session's tape."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from shadowcat_stores.records import Direction, Frame, JsonRpcId, Kind, MessageEnvelope

ENTRY_FRAMES: Final = 128
ENTRY_BYTES: Final = 64 * 1024
"""An entry takes no more: it goes as a whole when its last frame is trimmed, and is read as a whole."""


class Entry(NamedTuple):
    """Frames that follow each other on a tape."""

    length: int
    """How many they are."""
    raw_bytes: int
    """Of all their messages together."""
    sizes: bytes
    """Two 32 bit numbers for each: as packed, and of the raw message."""
    packed: bytearray
    """One after the other."""


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """A frame without what its place says. New fields go to the end, with a default."""

    direction: Direction
    kind: Kind
    raw: bytes
    at: float
    method: str | None = None
    id: JsonRpcId = None
    stream: str | None = None
    position: int = 0
    event: str | None = None
    event_id: str | None = None
    token: int = 0


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[_Packed]).decode


def pack(frames: Iterable[Frame]) -> Iterator[Entry]:
    """Yield the entries that the frames take.

    Raises:
        ValueError: a frame holds what cannot be stored.
    """
    packed, sizes = bytearray(), list[int]()
    total = end = 0
    for frame in frames:
        size = len(frame.envelope.raw)
        if sizes and (total + size > ENTRY_BYTES or len(sizes) == 2 * ENTRY_FRAMES):
            yield _entry(packed, sizes, total)
            packed, sizes = bytearray(), []
            total = end = 0
        _pack(frame, packed)
        sizes += len(packed) - end, size
        end = len(packed)
        total += size
    if sizes:
        yield _entry(packed, sizes, total)


def _entry(packed: bytearray, sizes: list[int], total: int) -> Entry:
    return Entry(len(sizes) // 2, total, struct.pack(f"<{len(sizes)}I", *sizes), packed)


def _pack(frame: Frame, end: bytearray) -> None:
    """Put the frame at the end."""
    envelope = frame.envelope
    fields = (
        frame.direction,
        envelope.kind,
        envelope.raw,
        frame.at,
        envelope.method,
        envelope.id,
        frame.stream,
        frame.position,
        frame.event,
        frame.event_id,
        frame.token,
    )
    try:
        _encode_into(fields, end, -1)
    except OverflowError as exc:
        raise ValueError(f"a frame has a number of more than 64 bits: {exc}") from exc


def raw_sizes(sizes: bytes) -> tuple[int, ...]:
    """Return how large the raw message of each frame is, given the sizes of its entry."""
    return _numbers(sizes)[1::2]


def unpack(
    session_id: str, last: int, sizes: bytes, packed: bytes, *, after: int = 0, stream: str | None = None
) -> list[Frame]:
    """Return those frames of an entry that have a higher seq than `after` and are of the stream.

    Its last one has the seq `last`; `sizes` and `packed` are as the entry has them.

    Raises:
        msgspec.DecodeError: it is none of ours.
    """
    if stream is not None and stream.encode() not in packed:
        return []
    count = len(sizes) // 8
    first = last - count + 1
    if after >= first:
        packed = packed[sum(_numbers(sizes)[: 2 * (after - first + 1) : 2]) :]
        count, first = max(last - after, 0), after + 1
    # The frames lie there one after the other: with the head of an array before them they are one.
    found = _decode(b"\xdd" + count.to_bytes(4, "big") + packed)
    return [
        _unpack(session_id, seq, each)
        for seq, each in enumerate(found, first)
        if stream in (None, each.stream)
    ]


def _numbers(sizes: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(sizes) // 4}I", sizes)


def _unpack(session_id: str, seq: int, packed: _Packed) -> Frame:
    return Frame(
        session_id=session_id,
        seq=seq,
        direction=packed.direction,
        envelope=MessageEnvelope(packed.raw, packed.kind, packed.method, packed.id),
        at=packed.at,
        stream=packed.stream,
        position=packed.position,
        event=packed.event,
        event_id=packed.event_id,
        token=packed.token,
    )
