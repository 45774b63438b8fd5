"""Notices that a client has left while its answer is still being made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol, Self

import anyio
from starlette.types import Receive

PATIENCE: Final = 0.01
"""Seconds an answer may take before the client is watched: a fast answer never pays for a watcher (6 µs)."""


class Answer(Protocol):
    """A response that knows what to do when its client leaves, or the server stops."""

    def client_left(self) -> None:
        """Take notice that nobody reads it any more."""

    def cut(self) -> None:
        """End as soon as can be."""


class Watches:
    """The watches of all requests that are being answered, and the one timer that begins them."""

    def __init__(self) -> None:
        self._all: set[ClientWatch] = set()
        self._young: list[ClientWatch] = []
        self._due: list[ClientWatch] = []
        """Those that begin at the next tick of the timer, unless they have ended; the young ones at the next
        but one."""
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[ClientWatch]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, watch: ClientWatch) -> None:
        """Count the watch, and begin it after `PATIENCE`, or up to twice that."""
        self._all.add(watch)
        self._young.append(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._begin)

    def discard(self, watch: ClientWatch) -> None:
        """Count it no more."""
        self._all.discard(watch)

    def _begin(self) -> None:
        for watch in self._due:
            if watch in self._all:
                watch.begin()
        self._due, self._young = self._young, []
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE, self._begin) if self._due else None


class ClientWatch:
    """Cancels the block it surrounds when the client has left: as soon as it has, or `patience` later.

    Servers send no headers before their first message, and an idle stream sends nothing at all: neither a
    pending upstream request nor `send` would show that nobody is there any more. Only `receive` does.

    The block's task is cancelled as `asyncio.timeout` does it: a scope of anyio's costs 6 µs, each time.
    """

    __slots__ = (
        "_among", "_answer", "_around", "_block", "_cancels_before", "_is_cancelled", "_is_due", "_is_over",
        "_late", "_receive", "_spared", "_watcher", "harmless", "has_left", "patience", "was_cut",
    )  # fmt: skip

    def __init__(self, receive: Receive, among: Watches, *, harmless: bool = False) -> None:
        self.harmless = harmless
        """Whether what is awaited has no effect upstream: a server that stops need not wait for it."""
        self.patience = 0.0
        """Seconds that what is awaited goes on without the client."""
        self.has_left = False
        """Whether the client has."""
        self.was_cut = False
        """Whether the block was left because of `cut`."""
        self._receive = receive
        self._among = among
        self._answer: Answer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_cancelled = False
        self._spared = 0
        self._is_due = False
        """Whether it is to be cancelled once it is not spared any more."""

    def __enter__(self) -> Self:
        self._block: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self._cancels_before = self._block.cancelling()
        self._around = _watching.get()
        _watching.set(self)
        self._among.add(self)
        return self

    def begin(self) -> None:
        """Watch, unless the answer is out by now."""
        if not self._is_over:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def hand_to(self, answer: Answer) -> None:
        """Let the answer itself deal with the client's leaving from now on."""
        self._answer = answer
        if self._late is not None:
            self._late.cancel()
        if self.has_left:
            answer.client_left()

    def lose_patience(self) -> None:
        """Leave the block as soon as the client has left: nobody would find what is still to come."""
        self.patience = 0.0
        if self.has_left:
            self._leave_soon()

    def cut(self) -> None:
        """Leave the block now: the server that is stopping has waited long enough."""
        if self._answer is not None:
            self._answer.cut()
        else:
            self.was_cut = not self.has_left
            self._leave()

    def stop(self) -> None:
        """Stop watching: the answer is out, and servers call its end a disconnect as well."""
        self._is_over = True
        if self._watcher is not None:
            self._watcher.cancel()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.stop()
        self._among.discard(self)
        _watching.set(self._around)
        if self._late is not None:
            self._late.cancel()
        if not self._is_cancelled:
            self.was_cut = False  # it came to its end while it was spared
            return False
        # Somebody else may want to cancel it as well.
        is_ours = self._block.uncancel() <= self._cancels_before
        return is_ours and isinstance(exc, asyncio.CancelledError)

    def _leave(self) -> None:
        """Cancel what the block waits for, once."""
        if self._spared:
            self._is_due = True
        elif not (self._is_over or self._is_cancelled):
            self._is_cancelled = True
            self._block.cancel()

    def _leave_soon(self) -> None:
        # Not now: the block runs, and would be cancelled wherever it waits next, if only after its end.
        asyncio.get_running_loop().call_soon(self._leave)

    @contextmanager
    def _sparing(self) -> Iterator[None]:
        self._spared += 1
        try:
            yield
        finally:
            self._spared -= 1
            if self._is_due and not self._spared:
                self._leave_soon()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        if self._answer is not None:
            self._answer.client_left()
        elif self.patience:
            self._late = asyncio.get_running_loop().call_later(self.patience, self._leave)
        else:
            self._leave()


_watching: ContextVar[ClientWatch | None] = ContextVar("watching", default=None)


@contextmanager
def spared() -> Iterator[None]:
    """See to it that what is awaited here comes to its end, whether or not the client leaves."""
    watch = _watching.get()
    # A task inherits what the one that made it was watched by, and is not.
    is_watched = watch is not None and watch._block is asyncio.current_task()
    with anyio.CancelScope(shield=True), watch._sparing() if watch and is_watched else nullcontext():
        yield
