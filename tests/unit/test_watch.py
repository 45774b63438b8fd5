"""Noticing that a client has left."""

from __future__ import annotations

import anyio
import pytest

from shadowcat.watch import ClientWatch, Watches


async def test_the_block_is_cancelled_when_the_client_leaves() -> None:
    messages = [{"type": "http.disconnect"}, {"type": "http.request"}]

    async def receive() -> dict[str, str]:
        return messages.pop()

    reached = False
    with anyio.fail_after(5), ClientWatch(receive, Watches()):
        await anyio.sleep_forever()
        reached = True
    assert not reached
    assert messages == []


async def test_a_fast_answer_starts_no_watcher() -> None:
    async def receive() -> dict[str, str]:
        raise AssertionError

    with ClientWatch(receive, Watches()) as watch:
        watch.stop()
    await anyio.lowlevel.checkpoint()


async def test_exceptions_pass() -> None:
    async def receive() -> dict[str, str]:
        raise AssertionError

    with pytest.raises(KeyError), ClientWatch(receive, Watches()):
        raise KeyError


async def test_a_stopped_watch_cancels_nothing() -> None:
    asked, gone = anyio.Event(), anyio.Event()

    async def receive() -> dict[str, str]:
        asked.set()
        await gone.wait()
        return {"type": "http.disconnect"}

    with anyio.fail_after(5), ClientWatch(receive, Watches()) as watch:
        await asked.wait()
        watch.stop()
        gone.set()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        finished = True
    assert finished
