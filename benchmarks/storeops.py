"""The operations of a session store that are measured, and how: one process, one event loop, one store."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from msgspec.structs import replace

from shadowcat_stores import Frame, MessageEnvelope, Session, SessionStore, Window

from .processes import cpu_seconds

Operation = Callable[[int, int], Awaitable[object]]
"""Takes the number of the call and of the worker who makes it."""

WARMUP = 0.1
TAPES = 32
"""Sessions whose tapes are written, each within the window that the proxy keeps by default."""
WINDOW = Window(frames=1000, bytes=4 * 1024 * 1024)
A_DAY = 86_400.0


@dataclass(frozen=True)
class Timing:
    """What one operation took."""

    calls: int
    rate: float
    p50: float
    p95: float
    """µs until it returned."""
    loop: float
    """µs of CPU per call: the thread of the event loop, with what makes the calls (about 0.5 µs)."""
    threads: float
    """µs of CPU per call: the process's other threads."""
    server: float
    """µs of CPU per call: the store's server."""


async def measure(operation: Operation, workers: int, seconds: float, server: int | None) -> Timing:
    """Let so many workers call the operation for so long, each its next call when the last one returned."""
    numbers = count()
    await _load(operation, workers, min(WARMUP, seconds), numbers)
    loop, process, of_server = time.thread_time(), time.process_time(), _server_seconds(server)
    began = time.perf_counter()
    taken = await _load(operation, workers, seconds, numbers)
    lasted = time.perf_counter() - began
    loop, process = time.thread_time() - loop, time.process_time() - process
    of_server = _server_seconds(server) - of_server
    ordered, calls = sorted(taken), len(taken)
    return Timing(
        calls=calls,
        rate=calls / lasted,
        p50=1e6 * ordered[calls // 2],
        p95=1e6 * ordered[calls * 95 // 100],
        loop=1e6 * loop / calls,
        threads=1e6 * max(0.0, process - loop) / calls,
        server=1e6 * of_server / calls,
    )


async def _load(operation: Operation, workers: int, seconds: float, numbers: count[int]) -> array[float]:
    clock = time.perf_counter
    end = clock() + seconds
    taken = array("d")

    async def work(worker: int) -> None:
        while (began := clock()) < end:
            await operation(next(numbers), worker)
            taken.append(clock() - began)

    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return taken


def _server_seconds(pid: int | None) -> float:
    return 0.0 if pid is None else cpu_seconds(pid)


# what is stored


def new_session(name: str) -> Session:
    """A session as a client of today begins it. Nothing in it is shared with another."""
    now = time.time()
    secret = random.randbytes(24).hex()
    return Session(
        id=f"{name}-{secret}",
        created_at=now,
        expires_at=now + A_DAY,
        upstream_session_id=secret[:32],
        protocol_version="2025-11-25",
        principal=secret[::-1],
        credentials=(secret[:43],),
        initialize=b'{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true},'
        b'"sampling":{},"elicitation":{}},"clientInfo":{"name":"%b","version":"1.2.3"}}' % secret.encode(),
        server_info=b'{"name":"%b","version":"1"}' % secret.encode(),
    )


def new_frames(session_id: str, size: int, number: int, **more: Any) -> list[Frame]:
    """Messages of `size` bytes each."""
    raw = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"%b"}]}}'
    envelope = MessageEnvelope(raw % (b"x" * (size - len(raw) + 2)), "response", id=1)
    frame = Frame(session_id=session_id, direction="server", envelope=envelope, at=time.time(), **more)
    return [frame] * number


async def fill(store: SessionStore, number: int, name: str = "s") -> list[str]:
    """Create so many sessions; return their ids."""
    sessions = [new_session(name) for _ in range(number)]
    waiting = iter(sessions)

    async def work() -> None:
        for session in waiting:
            await store.create_session(session)

    await asyncio.gather(*(work() for _ in range(32)))
    return [session.id for session in sessions]


# the operations


class Operations:
    """One store and the sessions that its operations are about."""

    def __init__(self, store: SessionStore, ids: list[str]) -> None:
        self.store = store
        self.ids = ids
        self.tapes = ids[:TAPES]
        self.template = new_session("new")
        self.created = count()
        self.held: dict[int, Session] = {}
        self.frames = {
            (session_id, size): new_frames(session_id, size, 100)
            for session_id in self.tapes
            for size in (300, 3000)
        }

    def all(self) -> dict[str, Operation]:
        return {
            "create_session": self.create,
            "get_session": self.get,
            "touch_session": self.touch,
            "update_session": self.update,
            "store_last_event_id": self.store_event_id,
            "get_last_event_id": self.get_event_id,
            "add_frame, 300 B": self.add_frame,
            "add_frames, 100 × 300 B": self.add_300,
            "add_frames, 100 × 3 KB": self.add_3000,
            "get_frames, 100 × 3 KB": self.get_frames,
            "list_sessions, page of 100": self.list_page,
        }

    async def prepare(self) -> None:
        """Fill the tapes; read what the updates begin with."""
        for session_id in self.tapes:
            await self.store.add_frames(self.frames[session_id, 3000], keep=WINDOW)
            await self.store.store_last_event_id(session_id, "0")
        for worker, session_id in enumerate(self.tapes):
            session = await self.store.get_session(session_id)
            assert session
            self.held[worker] = session

    def create(self, number: int, worker: int) -> Awaitable[Session]:
        return self.store.create_session(replace(self.template, id=f"new-{next(self.created):036}"))

    def get(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.get_session(self.ids[number * 7919 % len(self.ids)])

    def touch(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.touch_session(self.ids[number * 7919 % len(self.ids)], time.time() + A_DAY)

    async def update(self, number: int, worker: int) -> None:
        changed = replace(self.held[worker], principal=str(number))
        self.held[worker] = await self.store.update_session(changed)

    def store_event_id(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.store_last_event_id(self._tape(number), str(number))

    def get_event_id(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.get_last_event_id(self._tape(number))

    def add_frame(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.add_frame(self.frames[self._tape(number), 300][0], keep=WINDOW)

    def add_300(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.add_frames(self.frames[self._tape(number), 300], keep=WINDOW)

    def add_3000(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.add_frames(self.frames[self._tape(number), 3000], keep=WINDOW)

    def get_frames(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.get_frames(self._tape(number), limit=100)

    def list_page(self, number: int, worker: int) -> Awaitable[object]:
        return self.store.list_sessions(limit=100)

    def _tape(self, number: int) -> str:
        return self.tapes[number % len(self.tapes)]


def as_json(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    return {name: asdict(timing) for name, timing in timings.items()}
