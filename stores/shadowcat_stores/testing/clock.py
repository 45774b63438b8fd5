"""A clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """Seconds since an epoch of its own; they pass only when a test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds
