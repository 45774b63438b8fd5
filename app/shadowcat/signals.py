"""Draining begins with the signal: servers wait for open streams before they end the lifespan."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any


@contextmanager
def on_signals(drain: Callable[[], None]) -> Iterator[None]:
    """Call `drain` in the running loop when the process is told to stop, before the server's own handlers.

    A server installs those before it begins the lifespan, in which this is entered. Without them, as where
    nobody handles SIGTERM, nothing is installed here either: the process ends as it would have.
    """
    if current_thread() is not main_thread():  # nobody gets signals there
        yield
        return
    loop = asyncio.get_running_loop()
    theirs: dict[int, Any] = {}
    active = True

    def drain_first(number: int, frame: FrameType | None) -> None:
        if active:
            loop.call_soon_threadsafe(drain)
        theirs[number](number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            theirs[number] = handler
            signal.signal(number, drain_first)
    try:
        yield
    finally:
        active = False
        for each, handler in theirs.items():
            if signal.getsignal(each) is drain_first:
                signal.signal(each, handler)
