"""A call that has begun: at once where nothing waits, and like any other where something does."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from shadowcat.begun import Begun


async def at_once() -> int:
    return 1


async def wait_for(event: asyncio.Event) -> int:
    await event.wait()
    await asyncio.sleep(0)
    return 2


async def fail() -> int:
    raise KeyError("at once")


async def fail_after(event: asyncio.Event) -> int:
    await event.wait()
    raise KeyError("later")


async def test_what_does_not_wait_is_done() -> None:
    begun = Begun(at_once())
    assert begun.is_done
    assert begun.result == 1
    assert await begun == 1


async def test_what_waits_goes_on_where_it_is_awaited() -> None:
    event = asyncio.Event()
    begun = Begun(wait_for(event))
    assert not begun.is_done
    asyncio.get_running_loop().call_soon(event.set)
    assert await begun == 2


async def test_errors_come_where_they_are_raised() -> None:
    with pytest.raises(KeyError, match="at once"):
        _ = Begun(fail())
    event = asyncio.Event()
    begun = Begun(fail_after(event))
    asyncio.get_running_loop().call_soon(event.set)
    with pytest.raises(KeyError, match="later"):
        await begun


async def test_a_future_counts_as_a_call() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    begun = Begun(future)
    asyncio.get_running_loop().call_soon(future.set_result, 3)
    assert await begun == 3


async def test_the_time_is_bounded_where_it_waits() -> None:
    cleaned = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    assert await Begun(at_once()).within(0.001) == 1
    with pytest.raises(TimeoutError):
        await Begun(wait()).within(0.001)
    assert cleaned == [True]


@pytest.mark.parametrize("by_scope", [False, True])
async def test_it_is_cancelled_like_any_other(by_scope: bool) -> None:
    scope = anyio.CancelScope()
    seen = []

    async def wait() -> int:
        try:
            with anyio.CancelScope():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return 0

    async def run() -> int:
        with scope:
            return await Begun(wait()).within(60)
        return -1

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    if by_scope:
        scope.cancel()
    else:
        task.cancel()
    with anyio.fail_after(5):
        (result,) = await asyncio.gather(task, return_exceptions=True)
    assert seen == ["cancelled"]
    assert result == -1 or isinstance(result, asyncio.CancelledError)


async def test_what_takes_its_cancellation_goes_on() -> None:
    async def stubborn() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return 4

    async def run() -> int:
        return await Begun(stubborn())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 4


async def test_it_is_closed_with_who_awaits_it() -> None:
    closed = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    steps = Begun(wait()).__await__()
    next(steps)
    steps.close()
    assert closed == [True]
