"""An event that costs nothing until somebody waits for it."""

from __future__ import annotations

import asyncio

import anyio

from shadowcat.flag import Flag


async def test_it_is_waited_for_until_it_is_set() -> None:
    flag = Flag()
    waiting = [asyncio.ensure_future(flag.wait()) for _ in range(2)]
    await anyio.wait_all_tasks_blocked()
    assert not flag.is_set
    assert not any(each.done() for each in waiting)
    flag.set()
    with anyio.fail_after(5):
        await asyncio.gather(*waiting)
        await flag.wait()  # and does not wait any more
    assert flag.is_set
