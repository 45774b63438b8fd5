"""A backend for tests of `KeyValueStore`: sorted keys in this process, and others get in at every step."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar

import anyio.lowlevel

from shadowcat_stores import Clock, KeyValueStore, StoreLimits


class DictStore(KeyValueStore):
    """Lets other tasks run before and after each primitive; counts what it was asked for."""

    shared: ClassVar[bool] = True
    follow_interval: ClassVar[float] = 0.01

    def __init__(self, items: dict[bytes, bytes], *, clock: Clock, limits: StoreLimits) -> None:
        super().__init__(clock=clock, limits=limits)
        self.items = items
        self.calls: Counter[str] = Counter()
        self.items_read = 0
        self.after_a_scan: Callable[[], Awaitable[None]] | None = None

    async def read(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        await anyio.lowlevel.checkpoint()
        found = {key: self.items[key] for key in keys if key in self.items}
        self.count("read", len(found))
        await anyio.lowlevel.checkpoint()
        return found

    async def scan(self, first: bytes, last: bytes, limit: int | None) -> Sequence[tuple[bytes, bytes]]:
        await anyio.lowlevel.checkpoint()
        names = sorted(self.items)
        found = names[bisect_left(names, first) : bisect_left(names, last)][:limit]
        items = [(key, self.items[key]) for key in found]
        self.count("scan", len(items))
        await anyio.lowlevel.checkpoint()
        if self.after_a_scan is not None:
            await self.after_a_scan()
        return items

    async def commit(
        self, expected: Mapping[bytes, bytes | None], changes: Mapping[bytes, bytes | None]
    ) -> bool:
        await anyio.lowlevel.checkpoint()
        self.count("commit", 0)
        unchanged = all(self.items.get(key) == value for key, value in expected.items())
        if unchanged:
            for key, value in changes.items():
                assert len(key) <= 33
                if value is None:
                    self.items.pop(key, None)
                else:
                    self.items[key] = value
        await anyio.lowlevel.checkpoint()
        return unchanged

    def count(self, primitive: str, items: int) -> None:
        self.calls[primitive] += 1
        self.items_read += items
