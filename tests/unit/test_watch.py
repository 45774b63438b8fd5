"""Noticing that a client has left."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from shadowcat.watch import ClientWatch, Watches, spared


class Client:
    """Leaves when told."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.left = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        self.asked.set()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def leave(self) -> None:
        """Leave as soon as somebody would notice, and return when somebody had the time to."""
        await self.asked.wait()
        self.left.set()
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


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


async def test_what_is_spared_comes_to_its_end() -> None:
    client = Client()
    done: list[str] = []
    with anyio.fail_after(5), ClientWatch(client.receive, Watches()):
        with spared(), spared():
            await client.leave()
            done.append("spared")
        await anyio.sleep_forever()
        done.append("not reached")
    assert done == ["spared"]


async def test_a_task_of_its_own_spares_nobody_else() -> None:
    client = Client()
    forever = asyncio.Event()
    task: asyncio.Task[None] | None = None

    async def beside() -> None:
        with spared():
            await forever.wait()

    with anyio.fail_after(5), ClientWatch(client.receive, Watches()):
        task = asyncio.create_task(beside())
        await client.leave()
        await anyio.sleep_forever()
    forever.set()
    assert task is not None
    await task


async def test_a_block_that_ends_at_once_is_not_cancelled_behind_its_end() -> None:
    client = Client()
    with anyio.fail_after(5):
        with ClientWatch(client.receive, Watches()) as watch:
            with spared():
                await client.leave()
            assert watch.has_left
        with ClientWatch(client.receive, Watches()) as watch:
            watch.patience = 60.0
            await client.leave()
            watch.lose_patience()
        await turns()


async def test_patience_ends() -> None:
    client = Client()
    with anyio.fail_after(5), ClientWatch(client.receive, Watches()) as watch:
        watch.patience = 0.001
        await client.leave()
        await anyio.sleep_forever()
    assert watch.has_left


async def test_a_cancellation_from_elsewhere_passes() -> None:
    client = Client()
    reached = asyncio.Event()

    async def run() -> None:
        with ClientWatch(client.receive, Watches()) as watch:
            reached.set()
            try:
                await anyio.sleep_forever()
            finally:
                watch.cut()
                await turns()

    task = asyncio.create_task(run())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
        await task
    assert task.cancelled()


async def test_it_can_be_cut_once() -> None:
    client = Client()
    with anyio.fail_after(5), ClientWatch(client.receive, Watches()) as watch:
        asyncio.get_running_loop().call_soon(watch.cut)
        try:
            await anyio.sleep_forever()
        finally:
            watch.cut()
            await turns()
    assert watch.was_cut
    await turns()


async def test_what_ends_while_it_is_spared_was_not_cut() -> None:
    client = Client()
    with ClientWatch(client.receive, Watches()) as watch:
        with spared():
            watch.cut()
            await turns()
        watch.stop()
    assert not watch.was_cut


async def test_of_a_client_that_has_left_nothing_is_cut() -> None:
    client = Client()
    with anyio.fail_after(5), ClientWatch(client.receive, Watches()) as watch:
        watch.patience = 60.0
        await client.leave()
        watch.cut()
        await anyio.sleep_forever()
    assert not watch.was_cut


async def test_one_within_another_leaves_that_as_it_was() -> None:
    client = Client()
    done: list[str] = []
    with anyio.fail_after(5), ClientWatch(client.receive, Watches()):
        with ClientWatch(Client().receive, Watches()):
            pass
        with spared():
            await client.leave()
            done.append("spared")
        await anyio.sleep_forever()
    assert done == ["spared"]
