"""What the clauses' tests are made of: the class a store's author overrides, and the tests' helpers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar, cast

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from shadowcat_stores.base import SessionStore
from shadowcat_stores.errors import SessionConflict, StoreError
from shadowcat_stores.records import Frame, MessageEnvelope, Session, StoreLimits
from shadowcat_stores.testing.clock import FakeClock

T = TypeVar("T")
TestFunction = TypeVar("TestFunction", bound=Callable[..., Any])


def clause(number: int) -> Callable[[TestFunction], TestFunction]:
    """Return a decorator that cites the clause a test is for, and bounds an async test's time."""

    def cite(test: TestFunction) -> TestFunction:
        cited = _bounded(test) if inspect.iscoroutinefunction(test) else test
        vars(cited)["clause"] = number
        return cast("TestFunction", cited)

    return cite


def _bounded(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def bounded(self: ContractBase, *args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(self.patience):
            await test(self, *args, **kwargs)

    return bounded


def clauses_of(contract: type[ContractBase]) -> dict[str, int]:
    """Return the number of the clause that each test of the contract cites, by the test's name."""
    tests = inspect.getmembers(contract, inspect.isfunction)
    return {name: vars(test).get("clause", 0) for name, test in tests if name.startswith("test_")}


class ContractBase:
    """What a store's author overrides, and what every test gets."""

    pytestmark = pytest.mark.anyio
    patience: ClassVar[float] = 20.0
    """Seconds of real time that an async test may take before it has failed. No test waits for them."""
    examples: ClassVar[int] = 50
    """How many records, frames or ids each test of clause 3 that makes them up tries."""

    async def make_store(self, clock: FakeClock, limits: StoreLimits) -> SessionStore:
        """Return a store of yours that is not open yet, with this clock and these limits. Override it."""
        raise NotImplementedError("override make_store(self, clock, limits) with one that makes your store")

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Run the tests on asyncio."""
        return "asyncio"

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the clock of the test's stores."""
        return FakeClock()

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[SessionStore]:
        """Return an open, empty store with the default limits."""
        async with await self.make_store(clock, StoreLimits()) as store:
            yield store


def new_session(
    clock: FakeClock, session_id: str = "session-1", *, ttl: float = 60.0, **more: Any
) -> Session:
    """Return a record to be created that lives for `ttl` seconds from now."""
    return Session(id=session_id, created_at=clock(), expires_at=clock() + ttl, **more)


def new_frame(raw: bytes = b"{}", session_id: str = "session-1", **more: Any) -> Frame:
    """Return a frame of the server's to be added."""
    fields: dict[str, Any] = {"direction": "server", "at": 1.5, **more}
    return Frame(session_id=session_id, envelope=MessageEnvelope(raw=raw, kind="request"), **fields)


def raws(frames: Iterable[Frame]) -> list[bytes]:
    """Return what the frames carry."""
    return [frame.envelope.raw for frame in frames]


def seqs(frames: Iterable[Frame]) -> list[int]:
    """Return the frames' places in the tape."""
    return [frame.seq for frame in frames]


async def add_raws(store: SessionStore, *each: bytes, **more: Any) -> list[int]:
    """Add one frame for each of the raw messages, one call after the other; return their seqs."""
    return [await store.add_frame(new_frame(raw, **more)) for raw in each]


async def together(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T | StoreError]:
    """Make all calls at once; return what each returned, or the `StoreError` it raised, in their order."""
    answers: dict[int, T | StoreError] = {}

    async def run(place: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            answers[place] = await call()
        except StoreError as error:
            answers[place] = error

    async with anyio.create_task_group() as tasks:
        for place, call in enumerate(calls):
            tasks.start_soon(run, place, call)
    return [answers[place] for place in sorted(answers)]


async def take(store: SessionStore, count: int, session_id: str = "session-1", **more: Any) -> list[Frame]:
    """Return the first `count` frames of following, or fewer where it ends before."""
    found: list[Frame] = []
    async with aclosing(store.follow_frames(session_id, **more)) as frames:
        while len(found) < count:
            try:
                found.append(await anext(frames))
            except StopAsyncIteration:
                break
    return found


async def list_all(store: SessionStore, *, limit: int = 100, upstream: str | None = None) -> list[Session]:
    """Return every session that the store lists, page by page."""
    page = await store.list_sessions(limit=limit, upstream=upstream)
    found = page.sessions
    while page.cursor is not None:
        page = await store.list_sessions(limit=limit, cursor=page.cursor, upstream=upstream)
        found = found + page.sessions
    return found


async def relabel(store: SessionStore, session_id: str, change: Callable[[dict[str, str]], None]) -> None:
    """Change a session's labels, again from the start as long as others get in between."""
    while True:
        session = await store.get_session(session_id)
        assert session is not None
        change(session.labels)
        # Lets others in between also where the store's calls never wait.
        await anyio.lowlevel.checkpoint()
        try:
            await store.update_session(replace(session, labels=session.labels))
        except SessionConflict:
            continue
        return
