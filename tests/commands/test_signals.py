"""What the lifespan does with signals, and leaves as it was."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from types import FrameType

import anyio
import anyio.to_thread
import pytest

from shadowcat.signals import on_signals


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that reached a server's own handler."""
    seen: list[int] = []

    def server(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, server) for number in (signal.SIGTERM, signal.SIGINT)}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_signal_drains_and_reaches_the_server(handled: list[int]) -> None:
    drained = asyncio.Event()
    with on_signals(drained.set):
        signal.raise_signal(signal.SIGTERM)
        assert handled == [signal.SIGTERM]
        with anyio.fail_after(5):
            await drained.wait()


async def test_the_servers_handlers_are_there_again_afterwards(handled: list[int]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with on_signals(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


async def test_two_apps_may_end_in_any_order(handled: list[int]) -> None:
    drained: list[str] = []
    one, two = on_signals(lambda: drained.append("one")), on_signals(lambda: drained.append("two"))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(0)
    assert (drained, handled) == (["two"], [signal.SIGINT])
    two.__exit__(None, None, None)
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(0)
    assert (drained, handled) == (["two"], [signal.SIGINT] * 2)


async def test_where_nobody_handles_a_signal_nothing_is_put_in_place(handled: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with on_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_in_another_thread_signals_are_left_alone(handled: list[int]) -> None:
    before = signal.getsignal(signal.SIGINT)

    async def inside() -> bool:
        with on_signals(lambda: None):
            return signal.getsignal(signal.SIGINT) is before

    assert await anyio.to_thread.run_sync(lambda: asyncio.run(inside()))
