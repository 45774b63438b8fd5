"""Tells which sessions other processes record as well: their tapes keep the conversation's order too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from shadowcat_stores import Clock, Frame

_ALONE_AFTER: Final = 1.0
"""Seconds without a frame of another process's between this one's, after which it counts as alone."""
_KEPT: Final = 10_000


class Turns:
    """Who else records a session: a gap between the numbers of two of our own frames is somebody else's.

    A session counts as shared until this process has been alone with it for a second, and again as soon as
    it has written nothing in it for as long: what a load balancer does next is not known.
    """

    def __init__(self, alone_after: float = _ALONE_AFTER, monotonic: Clock = time.monotonic) -> None:
        self._alone_after = alone_after
        self._monotonic = monotonic
        self._known: dict[str, tuple[int, float, float]] = {}
        """By session: the newest seq of ours, since when no other came between, and when ours was stored."""

    def is_alone(self, session_id: str) -> bool:
        """Return whether nobody else seems to write to the session."""
        known = self._known.get(session_id)
        if known is None:
            return False
        _, since, latest = known
        return latest - since >= self._alone_after and self._monotonic() - latest < self._alone_after

    def wrote(self, frames: Sequence[Frame], seqs: Sequence[int]) -> None:
        """Take notice of frames of this process that were stored, and of the numbers they got."""
        now = self._monotonic()
        known = self._known
        for frame, seq in zip(frames, seqs, strict=True):
            if not seq:
                continue
            before = known.pop(frame.session_id, None)
            if before is None and len(known) >= _KEPT:
                # The one longest without a write: a dict keeps the order of insertion.
                del known[next(iter(known))]
            since = now if before is None or seq != before[0] + 1 else before[1]
            known[frame.session_id] = (seq, since, now)
