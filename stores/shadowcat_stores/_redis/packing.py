"""How frames lie in the server: many of them packed into one entry of the session's stream."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from shadowcat_stores.errors import StoreUnavailable
from shadowcat_stores.records import Direction, Frame, JsonRpcId, Kind, MessageEnvelope

ENTRY_FRAMES: Final = 128
ENTRY_BYTES: Final = 64 * 1024
"""An entry takes no more: it goes as a whole when its last frame is trimmed, and is read as a whole."""


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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Packed]).decode


def pack(frames: Sequence[Frame]) -> list[str | bytes | int]:
    """Return the frames as arguments of APPEND: count, raw bytes, sizes and frames of each entry.

    Raises:
        ValueError: a frame holds what cannot be stored.
    """
    arguments: list[str | bytes | int] = []
    for part in _parts(frames):
        try:
            packed = [_pack(frame) for frame in part]
        except OverflowError as exc:
            raise ValueError(f"a frame has a number of more than 64 bits: {exc}") from exc
        sizes = [size for frame, each in zip(part, packed, strict=True) for size in (len(each), _size(frame))]
        arguments += (
            len(part),
            sum(sizes[1::2]),
            struct.pack(f"<{len(sizes)}I", *sizes),
            b"".join(packed),
        )
    return arguments


def _parts(frames: Sequence[Frame]) -> Iterator[Sequence[Frame]]:
    start = size = 0
    for end, frame in enumerate(frames):
        size += _size(frame)
        if end > start and (size > ENTRY_BYTES or end - start == ENTRY_FRAMES):
            yield frames[start:end]
            start, size = end, _size(frame)
    yield frames[start:]


def _size(frame: Frame) -> int:
    return len(frame.envelope.raw)


def _pack(frame: Frame) -> bytes:
    envelope = frame.envelope
    return _encode(
        (
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
    )


def seq_of(entry_id: bytes) -> int:
    """Return the seq of the entry's last frame."""
    return int(entry_id.partition(b"-")[0])


def unpack(session_id: str, entry_id: bytes, fields: Sequence[bytes]) -> list[Frame]:
    """Return the frames of an entry; it is under the seq of its last one.

    Raises:
        StoreUnavailable: it is none of ours.
    """
    sizes, packed = fields[1], fields[3]
    count = len(sizes) // 8
    first = seq_of(entry_id) - count + 1
    # The frames lie there one after the other: with the head of an array before them they are one.
    try:
        found = _decode(b"\xdd" + count.to_bytes(4, "big") + packed)
    except msgspec.DecodeError as exc:
        raise StoreUnavailable(f"what Redis has under the store's prefix is no tape: {exc}") from exc
    return [_unpack(session_id, seq, each) for seq, each in enumerate(found, first)]


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
