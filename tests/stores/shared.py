"""A shared store for tests: several store objects on one backend, within one process."""

from typing import ClassVar

from shadowcat_stores import Clock, MemoryStore, StoreLimits
from shadowcat_stores._memory_index import Index


class SharedMemoryStore(MemoryStore):
    """Sees what every other store object on the same backend stores."""

    shared: ClassVar[bool] = True

    def __init__(self, backend: Index, *, clock: Clock, limits: StoreLimits) -> None:
        super().__init__(clock=clock, limits=limits)
        self._index = backend
