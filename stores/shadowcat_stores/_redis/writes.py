"""What is on its way to the tapes, so that nothing is stored twice when a call that failed is made again."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import count, islice, repeat

from shadowcat_stores.records import Frame


class Write:
    """Frames of one session that go to its tape in one step."""

    __slots__ = ("answer", "frames", "number", "settled")

    def __init__(self, number: int, frames: list[Frame]) -> None:
        self.number = number
        self.frames = frames
        self.settled = False
        self.answer: bytes | None = None

    def settle(self, answer: bytes | None) -> None:
        """Keep the answer: the first seq and who was refused; `None` where the session is absent."""
        self.settled = True
        self.answer = answer

    def seqs(self) -> Iterable[int]:
        """Return the seq of each frame, 0 for one not stored."""
        if self.answer is None:
            return repeat(0, len(self.frames))
        first, _, refused = self.answer.partition(b" ")
        seqs = count(int(first))
        if not refused:
            return islice(seqs, len(self.frames))
        out = {int(place) for place in refused.split(b",")}
        return [0 if place in out else next(seqs) for place in range(1, len(self.frames) + 1)]


class Writes:
    """The writes of one store object.

    A call that failed may have stored some of its frames, or all. Its writes are kept until the next call:
    where that brings the very same frame objects, they go out under the same number, by which the server
    knows what it has.
    """

    def __init__(self) -> None:
        self.unsettled: dict[str, list[Write]] = {}
        self._numbers = count(1)

    @cached_property
    def writer(self) -> str:
        """The name that the numbers are counted for.

        Chosen at the first write: a server may make its app, and fork then. By one name for two processes the
        server would take the writes of the one for repetitions of the other's.
        """
        return secrets.token_hex(4)

    def of(self, frames: Sequence[Frame]) -> dict[str, list[Write]]:
        """Return what to write of each session: what is new, after what a failed call left unsettled."""
        by_session: dict[str, list[Frame]] = {}
        for frame in frames:
            by_session.setdefault(frame.session_id, []).append(frame)
        written: dict[str, list[Write]] = {}
        for session_id, group in by_session.items():
            writes = written[session_id] = []
            for before in self.unsettled.pop(session_id, ()):
                if not _begin_with(group, before.frames):
                    break
                writes.append(before)
                group = group[len(before.frames) :]
            if group:
                writes.append(Write(next(self._numbers), group))
        return written


def next_of_each(written: dict[str, list[Write]]) -> list[tuple[str, Write]]:
    """Return the next write of each session: a second one only goes out when the first is there."""
    found = []
    for session_id, writes in written.items():
        write = next((each for each in writes if not each.settled), None)
        if write is not None:
            found.append((session_id, write))
    return found


def _begin_with(frames: list[Frame], others: list[Frame]) -> bool:
    """Return whether the frames begin with the very same objects."""
    return len(frames) >= len(others) and all(a is b for a, b in zip(frames, others, strict=False))
