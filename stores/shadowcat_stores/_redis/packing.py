"""How frames lie in the server: many of them packed into one entry of the session's stream."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from shadowcat_stores._redis.scripts import Argument
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


_LARGE: Final = 32 * 1024
"""Bytes from which an argument is sent from where it lies: for less, copying it costs less."""

_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[_Packed]).decode


def pack(frames: Iterable[Frame]) -> list[Argument]:
    """Return the frames as arguments of APPEND: count, raw bytes, sizes and frames of each entry.

    Raises:
        ValueError: a frame holds what cannot be stored.
    """
    arguments: list[Argument] = []
    packed, sizes = bytearray(), list[int]()
    total = end = 0
    for frame in frames:
        size = len(frame.envelope.raw)
        if sizes and (total + size > ENTRY_BYTES or len(sizes) == 2 * ENTRY_FRAMES):
            arguments += _entry(packed, sizes, total)
            packed, sizes = bytearray(), []
            total = end = 0
        _pack(frame, packed)
        sizes += len(packed) - end, size
        end = len(packed)
        total += size
    arguments += _entry(packed, sizes, total)
    return arguments


def _entry(packed: bytearray, sizes: list[int], total: int) -> list[Argument]:
    frames = packed if len(packed) >= _LARGE else bytes(packed)
    return [len(sizes) // 2, total, struct.pack(f"<{len(sizes)}I", *sizes), frames]


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
