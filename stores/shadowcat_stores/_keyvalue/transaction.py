"""What one verb of a `KeyValueStore` reads, and what it is going to change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from shadowcat_stores._keyvalue.layout import encode

Read: TypeAlias = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, bytes]]]
Scan: TypeAlias = Callable[[bytes, bytes, int | None], Awaitable[Sequence[tuple[bytes, bytes]]]]


class Transaction:
    """Reads through to the store, and keeps changes to itself: they are committed together or not at all."""

    def __init__(self, read: Read, scan: Scan) -> None:
        self._read = read
        self._scan = scan
        self.expected: dict[bytes, bytes | None] = {}
        """What was read by its key, and so has to be as it was."""
        self.changes: dict[bytes, bytes | None] = {}

    async def get(self, *keys: bytes) -> list[bytes | None]:
        """Return what is under each of the keys, all as of one moment where none was asked for before."""
        unread = [key for key in keys if key not in self.changes and key not in self.expected]
        if unread:
            found = await self._read(unread)
            self.expected.update((key, found.get(key)) for key in unread)
        return [self.changes[key] if key in self.changes else self.expected[key] for key in keys]

    async def scan(self, first: bytes, last: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
        """Return the first `limit` items from the key `first` on, before the key `last`."""
        changed = {key: value for key, value in self.changes.items() if first <= key < last}
        removed = sum(value is None for value in changed.values())
        stored = await self._scan(first, last, None if limit is None else limit + removed)
        merged = {**dict(stored), **changed}
        return [(key, value) for key in sorted(merged) if (value := merged[key]) is not None][:limit]

    def put(self, key: bytes, value: object) -> None:
        """Have the value under the key. What is there already is no change."""
        data = encode(value)
        if key in self.changes or self.expected.get(key) != data:
            self.changes[key] = data

    def drop(self, *keys: bytes) -> None:
        """Have nothing under the keys."""
        self.changes.update(dict.fromkeys(keys))
