"""A session as a transaction of a `KeyValueStore` holds it: its tape and its streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from msgspec.structs import replace

from shadowcat_stores._keyvalue.layout import (
    COUNTERS,
    END,
    NEVER,
    Counters,
    Head,
    Kept,
    Stream,
    decode,
    expiry_key,
    key,
    place_of,
)
from shadowcat_stores._keyvalue.transaction import Transaction
from shadowcat_stores.errors import SessionConflict
from shadowcat_stores.records import Frame, Session, StreamClaim, Window

_PAGE = 16


async def counters_in(transaction: Transaction) -> Counters:
    """Return what is known of all sessions together."""
    (data,) = await transaction.get(COUNTERS)
    return Counters() if data is None else decode(data, Counters)


class HeldSession:
    """A session, expired or not, as the transaction has it and will change it."""

    def __init__(self, transaction: Transaction, place: bytes, kept: Kept, head: Head) -> None:
        self._transaction = transaction
        self._place = place
        self.kept = kept
        self.head = head

    @classmethod
    async def find(cls, transaction: Transaction, place: bytes) -> Self | None:
        """Return the session, `None` where there is nothing in its place."""
        kept, head = await transaction.get(key(b"s", place), key(b"h", place))
        if kept is None or head is None:
            return None
        return cls(transaction, place, decode(kept, Kept), decode(head, Head))

    @classmethod
    async def create(cls, transaction: Transaction, record: Session) -> None:
        """Add a session in a place where there is none."""
        counters = await counters_in(transaction)
        counters.live += 1
        counters.last += 1
        transaction.put(COUNTERS, counters)
        place = place_of(record.id)
        transaction.put(key(b"o", counters.last), place)
        created = cls(transaction, place, Kept(record, counters.last, record.expires_at), Head())
        created._save_head()
        created.index()

    def _save_record(self) -> None:
        self._transaction.put(key(b"s", self._place), self.kept)

    def _save_head(self) -> None:
        self._transaction.put(key(b"h", self._place), self.head)

    def lives(self, now: float) -> bool:
        """Say whether it has not expired."""
        return self.kept.record.expires_at > now

    def index(self) -> None:
        """Be found by the expiry the record has now, and by no other."""
        self._transaction.drop(expiry_key(self.kept.indexed, self.kept.number))
        self.kept.indexed = self.kept.record.expires_at
        self._transaction.put(expiry_key(self.kept.indexed, self.kept.number), self._place)
        self._save_record()

    async def update(self, session: Session) -> Session:
        """Replace the record if its revision is still the stored one; return it as stored."""
        stored = self.kept.record
        if session.revision != stored.revision:
            raise SessionConflict(
                f"session {session.id!r} is at revision {stored.revision}, not {session.revision}"
            )
        later = max(session.expires_at, stored.expires_at)
        labels = session.labels.copy()
        self.kept.record = replace(session, revision=stored.revision + 1, expires_at=later, labels=labels)
        self._save_record()
        return self.kept.record

    async def touch(self, expires_at: float) -> None:
        """Let it live at least until then."""
        stored = self.kept.record
        self.kept.record = replace(stored, expires_at=max(expires_at, stored.expires_at))
        self._save_record()

    async def remove(self) -> None:
        """Drop it with all that belongs to it."""
        await self.drop_frames()
        streams = key(b"t", self._place)
        for name, data in await self._transaction.scan(streams, streams + END):
            self._drop_stream(name, decode(data, Stream))
        self._transaction.drop(key(b"s", self._place), key(b"h", self._place))
        self._transaction.drop(key(b"o", self.kept.number), expiry_key(self.kept.indexed, self.kept.number))
        counters = await counters_in(self._transaction)
        counters.live -= 1
        self._transaction.put(COUNTERS, counters)

    # -- the tape -----------------------------------------------------------------------------------

    async def add(
        self, frames: Iterable[Frame], windows: Iterable[Window], most_streams: int | None, now: float
    ) -> list[int]:
        """Append the frames; return the seq of each, 0 for one that is fenced out."""
        seqs = []
        for frame in frames:
            if await self._is_fenced_out(frame):
                seqs.append(0)
                continue
            seqs.append(self._append(frame))
            if frame.event_id is not None and frame.stream is not None and frame.direction == "server":
                await self.see(frame.stream, frame.event_id, most_streams, now)
            for window in windows:
                await self._trim(window)
        self._save_head()
        return seqs

    def _append(self, frame: Frame) -> int:
        self.head.seq += 1
        self.head.bytes += len(frame.envelope.raw)
        self._transaction.put(key(b"f", self._place, self.head.seq), replace(frame, seq=self.head.seq))
        return self.head.seq

    async def _is_fenced_out(self, frame: Frame) -> bool:
        if frame.token == 0 or frame.stream is None:
            return False
        newest = (await self.stream(frame.stream)).token
        return frame.token < newest if newest else frame.token <= self.head.tokens

    def _fits(self, window: Window) -> bool:
        held = self.head.seq - self.head.dropped
        return held <= 1 or (
            (window.frames is None or held <= window.frames)
            and (window.bytes is None or self.head.bytes <= window.bytes)
        )

    async def _trim(self, window: Window) -> None:
        head = self.head
        at_once = 1
        while not self._fits(window):
            first, last = key(b"f", self._place, head.dropped + 1), key(b"f", self._place, head.seq)
            for name, data in await self._transaction.scan(first, last, at_once):
                if self._fits(window):
                    break
                head.bytes -= len(decode(data, Frame).envelope.raw)
                head.dropped += 1
                self._transaction.drop(name)
            at_once *= 2

    async def drop_frames(self) -> int:
        """Drop the frames; return how many there were."""
        head = self.head
        seqs = range(head.dropped + 1, head.seq + 1)
        self._transaction.drop(*(key(b"f", self._place, seq) for seq in seqs))
        head.dropped, head.bytes = head.seq, 0
        self._save_head()
        return len(seqs)

    # -- streams ------------------------------------------------------------------------------------

    def _stream_key(self, name: str) -> bytes:
        return key(b"t", self._place, place_of(name))

    async def stream(self, name: str) -> Stream:
        """Return what is known of the stream."""
        (data,) = await self._transaction.get(self._stream_key(name))
        return Stream() if data is None else decode(data, Stream)

    async def see(self, name: str, event_id: str, most: int | None, now: float) -> None:
        """Remember the id of the last event seen on the stream."""
        stream = await self.stream(name)
        stream.event_id = event_id
        await self._use(name, stream, most, now)

    async def _use(self, name: str, stream: Stream, most: int | None, now: float) -> None:
        # It becomes the one most recently used, with at most `most` remembered if leases allow.
        head = self.head
        if stream.used:
            self._transaction.drop(key(b"u", self._place, stream.used))
        else:
            head.streams += 1
        head.uses += 1
        stream.used = head.uses
        self._transaction.put(self._stream_key(name), stream)
        self._transaction.put(key(b"u", self._place, stream.used), self._stream_key(name))
        if most is not None:
            await self._forget(most, now)
        self._save_head()

    async def _forget(self, most: int, now: float) -> None:
        # Least recently used first. A lease is renewed again and again, so few of them stand in the way.
        first, last = key(b"u", self._place), key(b"u", self._place, self.head.uses)
        while self.head.streams > most:
            uses = await self._transaction.scan(first, last, _PAGE)
            if not uses:
                return
            first = uses[-1][0] + b"\0"
            names = [decode(data, bytes) for _, data in uses]
            for name, data in zip(names, await self._transaction.get(*names), strict=True):
                stream = Stream() if data is None else decode(data, Stream)
                if self.head.streams > most and stream.leased_until <= now:
                    self._drop_stream(name, stream)
                    self.head.streams -= 1

    def _drop_stream(self, name: bytes, stream: Stream) -> None:
        self._transaction.drop(name, key(b"u", self._place, stream.used))

    async def claim(
        self, name: str, owner: str, lease: float, most: int | None, now: float
    ) -> StreamClaim | None:
        """Return the owner's claim; `None` where another's lease runs."""
        stream = await self.stream(name)
        if stream.leased_until <= now:
            self.head.tokens += 1
            stream.owner, stream.token = owner, self.head.tokens
        elif stream.owner != owner:
            return None
        stream.leased_until = now + lease
        await self._use(name, stream, most, now)
        return StreamClaim(owner=owner, token=stream.token, expires_at=stream.leased_until)

    async def release(self, name: str, token: int, now: float) -> bool:
        """End the claim of the token; say whether it was in force."""
        stream = await self.stream(name)
        if stream.token != token or stream.leased_until <= now:
            return False
        stream.leased_until = NEVER
        self._transaction.put(self._stream_key(name), stream)
        return True

    async def claim_in_force(self, name: str, now: float) -> StreamClaim | None:
        """Return the claim in force on the stream; `None` where nobody's lease runs."""
        stream = await self.stream(name)
        if stream.leased_until <= now:
            return None
        return StreamClaim(owner=stream.owner, token=stream.token, expires_at=stream.leased_until)
