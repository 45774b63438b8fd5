"""The verbs of `RedisStore` about a session's tape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from shadowcat_stores._packing import pack, unpack
from shadowcat_stores._redis.base import RedisBase
from shadowcat_stores._redis.errors import unavailable
from shadowcat_stores._redis.scripts import APPEND, FORGET, Argument
from shadowcat_stores._redis.wire import Call, transaction
from shadowcat_stores._redis.writes import Write, next_of_each
from shadowcat_stores.errors import SessionNotFound, StoreUnavailable
from shadowcat_stores.records import Frame, Window

_PAGE: Final = 32
"""How many entries of a tape one who follows it reads at once."""

_FEW: Final = 2
"""How many entries are read at first where few frames are wanted: one may hold a single frame, or 128."""

_LARGE: Final = 32 * 1024
"""Bytes from which an argument is sent from where it lies: for less, copying it costs less."""

_UNPACKED_AT_ONCE: Final = 8
_LAST_SEQ: Final = 2**53

_AGAIN: Final = 1.0
"""Seconds after which one who follows looks whether the server is back."""


class Tape(NamedTuple):
    """A piece of a session's tape."""

    number: int
    """Of the session: another one under the same id has another."""
    frames: list[Frame]
    oldest: int
    """The seq of the oldest frame that the tape had at that moment; what was before is trimmed."""
    end: int | None
    """The seq to go on after; `None` where there is no more."""


class TapeVerbs(RedisBase):
    """Frames."""

    # -- writing ------------------------------------------------------------------------------------

    async def add_frame(self, frame: Frame, *, keep: Window | None = None) -> int:
        """Append the frame to its session's tape; return the seq it got, 0 where it was fenced out."""
        write = (await self._add([frame], keep))[frame.session_id][0]
        if write.answer is None:
            raise SessionNotFound(f"there is no session {frame.session_id!r}")
        return next(iter(write.seqs()))

    async def add_frames(self, frames: Sequence[Frame], *, keep: Window | None = None) -> list[int]:
        """Append many, those of a session in one step; return the seq of each, 0 for one not stored.

        Who is told that the store is unavailable may hand in the same frame objects again: those that were
        stored all the same are not stored twice.
        """
        written = await self._add(frames, keep)
        seqs = {
            session_id: chain.from_iterable(write.seqs() for write in writes)
            for session_id, writes in written.items()
        }
        return [next(seqs[frame.session_id]) for frame in frames]

    async def _add(self, frames: Sequence[Frame], keep: Window | None) -> dict[str, list[Write]]:
        """Return the writes of each session, settled."""
        server = self._connected()
        written = self._writes.of(frames)
        try:
            while todo := next_of_each(written):
                said = self._said_to_all(keep)
                answers = await server.run([self._appending(each, write, said) for each, write in todo])
                failed: Exception | None = None
                for (_, write), answer in zip(todo, answers, strict=True):
                    if isinstance(answer, Exception):
                        failed = answer
                    else:
                        write.settle(answer)
                if failed is not None:
                    raise unavailable(failed) from failed
        except BaseException:
            self._writes.unsettled = written
            raise
        return written

    def _said_to_all(self, keep: Window | None) -> tuple[str | int, ...]:
        """Return the first arguments of APPEND, which are the same for each session."""
        limits = self.limits
        return (
            repr(self.clock()),
            _least(limits.frames, None if keep is None else keep.frames),
            _least(limits.frame_bytes, None if keep is None else keep.bytes),
            "" if limits.streams is None else limits.streams,
            self._writes.writer,
        )

    def _appending(self, session_id: str, write: Write, said: tuple[str | int, ...]) -> Call:
        keys = self._keys(session_id)
        concerned = [
            value
            for place, frame in enumerate(write.frames, 1)
            if frame.stream is not None
            for value in _concern(place, frame.stream, frame)
        ]
        command = APPEND(keys, *said, write.number, len(concerned) // 5, *concerned, *_packed(write.frames))
        return Call(keys[0], (command,))

    async def delete_frames(self, session_id: str) -> int:
        """Forget the session's frames; return how many there were. Later ones go on numbering."""
        keys = self._keys(session_id)
        return int(await self._ask(Call(keys[0], (FORGET(keys, repr(self.clock())),))))

    # -- reading ------------------------------------------------------------------------------------

    async def get_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0, limit: int | None = None
    ) -> list[Frame]:
        """Return the session's frames in seq order; none where the session is absent."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: ask for at least 1")
        if limit is not None:
            async with self._in_time():
                return await self._first(session_id, stream, after, limit)
        tape = await self._read(session_id, after, None)
        return [] if tape is None else [each for each in tape.frames if stream in (None, each.stream)]

    async def _first(self, session_id: str, stream: str | None, after: int, limit: int) -> list[Frame]:
        """Return up to `limit` frames. What is read for them is at most about twice what they are in."""
        found: list[Frame] = []
        number, seen, entries = None, after, _FEW
        while True:
            # Each entry has a frame at least; those of one stream may be anywhere.
            most = entries if stream is not None else min(entries, limit - len(found))
            tape = await self._read(session_id, seen, most)
            if tape is None:
                return []
            if number not in (None, tape.number):
                return await self._first(session_id, stream, after, limit)
            # What was trimmed meanwhile goes, so that all is as it was when it was last looked at.
            found = [each for each in found if each.seq >= tape.oldest]
            found += [each for each in tape.frames if stream in (None, each.stream)]
            if len(found) >= limit or tape.end is None:
                return found[:limit]
            number, seen, entries = tape.number, tape.end, 2 * entries

    async def _read(self, session_id: str, after: int, most: int | None) -> Tape | None:
        """Return the frames after a seq, those of `most` entries; `None` where the session is absent."""
        keys = self._keys(session_id)
        at_most = () if most is None else ("COUNT", most)
        call = transaction(
            keys[0],
            ("HMGET", keys[0], "x", "n", "o"),
            ("XRANGE", keys[1], f"{min(max(after, 0), _LAST_SEQ) + 1}-0", "+", *at_most),
        )
        (expires, number, oldest), entries = await self._ask(call)
        if expires is None or float(expires) <= self.clock():
            return None
        first, end = int(oldest or 1), None
        after = max(after, first - 1)
        frames: list[Frame] = []
        for place, (entry_id, fields) in enumerate(entries):
            if place % _UNPACKED_AT_ONCE == 0:
                await asyncio.sleep(0)  # A long tape takes a while: others have their turn.
            try:
                frames += unpack(session_id, _seq_of(entry_id), fields[1], fields[3], after=after)
            except msgspec.DecodeError as exc:
                raise StoreUnavailable(f"what Redis has under the store's prefix is no tape: {exc}") from exc
        if len(entries) == most:
            end = _seq_of(entries[-1][0])
        return Tape(int(number), frames, first, end)

    async def follow_frames(
        self, session_id: str, *, stream: str | None = None, after: int = 0
    ) -> AsyncGenerator[Frame, None]:
        """Iterate over the frames after seq `after`, then over each new one as it comes."""
        news = self._connected().news
        number: int | None = None
        with news.of(self._keys(session_id)[0]) as listener:
            while True:
                listener.clear()
                try:
                    tape = await self._read(session_id, after, _PAGE)
                except StoreUnavailable:
                    if number is None or news.closed:
                        raise
                    await listener.wait(_AGAIN)
                    continue
                if tape is None or tape.number != (tape.number if number is None else number):
                    return
                number = tape.number
                for frame in tape.frames:
                    after = frame.seq
                    if stream in (None, frame.stream):
                        yield frame
                if tape.end is None:
                    await listener.wait()
                if news.closed:
                    raise StoreUnavailable("the store was closed")


def _concern(place: int, stream: str, frame: Frame) -> tuple[str | int, ...]:
    """Return what APPEND has to know of a frame on a stream; nothing where it changes and risks nothing."""
    has_event = frame.event_id is not None and frame.direction == "server"
    if not has_event and frame.token <= 0:
        return ()
    return place, stream, frame.token, int(has_event), frame.event_id or ""


def _packed(frames: Iterable[Frame]) -> Iterator[Argument]:
    """Yield the frames as arguments of APPEND: count, raw bytes, sizes and frames of each entry."""
    for count, raw_bytes, sizes, packed in pack(frames):
        yield from (count, raw_bytes, sizes, packed if len(packed) >= _LARGE else bytes(packed))


def _seq_of(entry_id: bytes) -> int:
    """Return the seq of the entry's last frame."""
    return int(entry_id.partition(b"-")[0])


def _least(*bounds: int | None) -> str | int:
    return min((bound for bound in bounds if bound is not None), default="")
