"""Several processes that serve on the same sockets, and the first one, which starts, replaces and ends them.

A signal is for the first process alone, and the workers leave it to that. A terminal's Ctrl-C and systemd's
SIGTERM reach every process, and a worker that was told twice would not wait for what is open. What the first
process has to say goes over a socket to each worker, whose end tells either that the other is gone.

uvicorn's own supervisor passes signals on as signals, ends with 0 where no worker could start, and leaves its
workers behind where it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, Never

from starlette.applications import Starlette

from shadowcat.serving import START_FAILED, Server

logger = logging.getLogger("shadowcat.workers")

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_READY: Final = b"r"
_STOP: Final = b"s"
_PAUSE: Final = 1.0
"""Seconds before a worker is replaced that ended before it was ready: its successor may well do the same."""


class Worker(Server):
    """One of several: tells the first process when it is ready, and is told by it to stop."""

    def __init__(self, app: Starlette, link: socket.socket, root_path: str = "") -> None:
        super().__init__(app, self._tell, root_path)
        self._link = link

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the first process."""
        yield

    def _tell(self) -> None:
        # From here on by a handler of ours: a process that is started from this one would inherit SIG_IGN.
        _handle(lambda number, frame: None)
        asyncio.get_running_loop().add_reader(self._link, self._listen)
        with suppress(OSError):  # the first process is gone, which is heard next
            self._link.send(_READY)

    def _listen(self) -> None:
        said = b""
        with suppress(OSError):
            said = self._link.recv(1)
        if not said:
            asyncio.get_running_loop().remove_reader(self._link)
        if said or not self.should_exit:
            self._service.drain()
            self.handle_exit(signal.SIGINT, None)


class _Process:
    """A worker, as the first process sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ready = False


class Workers:
    """The first process: keeps `count` workers running until it is told to stop.

    A worker is forked, and runs `work` with its end of the socket to here, which returns its exit code. So
    nothing may run or be open yet that two processes cannot share, such as a thread, a loop, or a store.
    `on_ready` is called once, when all of them serve.
    """

    def __init__(
        self, count: int, work: Callable[[socket.socket], int], on_ready: Callable[[], None]
    ) -> None:
        self._count = count
        self._work = work
        self._on_ready = on_ready
        self._running: dict[socket.socket, _Process] = {}
        self._stopping = False
        self._have_begun = False
        """Whether all workers were ready, once."""
        self._fork_at = 0.0
        self._code = 0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, and until the workers have ended; return the exit code.

        It is 0 after a signal, and 3 where a worker could not start at the beginning.
        """
        _handle(self._take_signal)
        while self._running or not self._stopping:
            wait = self._fork_at - time.monotonic()
            if wait <= 0:
                self._fork_missing()
            if self._running or wait > 0:
                links = list(self._running)
                for link in select.select(links, [], [], wait if wait > 0 else None)[0]:
                    self._hear(link)
        return self._code

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for link in self._running:
            with suppress(OSError):  # it has just ended
                link.send(_STOP)

    def _fork_missing(self) -> None:
        """Start the workers that are missing; but one, where none is ready that shows that they can start."""
        wanted = self._count if any(each.ready for each in self._running.values()) else 1
        while len(self._running) < wanted and not self._stopping:
            self._fork()

    def _fork(self) -> None:
        # A signal in between would find a worker that is not in the list, or a child that acts as its parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if self._stopping:
                return
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid:
                self._running[ours] = _Process(pid)
            else:
                _handle(signal.SIG_IGN)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if not pid:
            self._become_a_worker(ours, theirs)
        theirs.close()

    def _become_a_worker(self, ours: socket.socket, theirs: socket.socket) -> Never:
        for end in (ours, *self._running):  # kept open here, their other ends would not tell of an end
            end.close()
        raise SystemExit(self._work(theirs))

    def _hear(self, link: socket.socket) -> None:
        worker = self._running[link]
        said = b""
        with suppress(OSError):
            said = link.recv(1)
        if said:
            worker.ready = True
            ready = sum(each.ready for each in self._running.values())
            if ready == self._count and not self._have_begun:
                self._have_begun = True
                self._on_ready()
            elif self._have_begun:
                logger.info("worker %d serves", worker.pid)
            return
        del self._running[link]
        link.close()
        self._bury(worker)

    def _bury(self, worker: _Process) -> None:
        """See to what the end of a worker means."""
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if self._stopping:
            return
        if not self._have_begun:
            self._code = START_FAILED
            self._stop()
            return
        if not worker.ready:
            self._fork_at = time.monotonic() + _PAUSE
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        logger.error("worker %d ended with %s: another one is started", worker.pid, how)


def _handle(handler: Any) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
