"""Reading a stream of events as a client does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from shadowcat.sse import SSEBlock, SSEFramer


class Events:
    """The events of one response, one after the other."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_raw()
        self._framer = SSEFramer()
        self._blocks: list[SSEBlock] = []

    async def next(self) -> SSEBlock | None:
        """Return the next event, whether it has data or only a `retry`; `None` at the end."""
        while True:
            while self._blocks:
                block = self._blocks.pop(0)
                if block.data is not None or block.retry is not None:
                    return block
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return None
            self._blocks = self._framer.feed(chunk)

    async def rest(self) -> list[SSEBlock]:
        """Return what comes until the end."""
        return [block async for block in self]

    async def __aiter__(self) -> AsyncIterator[SSEBlock]:
        while (block := await self.next()) is not None:
            yield block


def message(block: SSEBlock | None) -> Any:
    """Return the message in the event."""
    assert block is not None
    assert block.data
    return json.loads(block.data)
