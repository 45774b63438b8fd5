"""What all verbs of `RedisStore` stand on: its life, its keys, and how they ask the server."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import warnings
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, Self, TypeVar

import anyio

from shadowcat_stores._redis.errors import FOREIGN, not_opened, unavailable
from shadowcat_stores._redis.index import Index
from shadowcat_stores._redis.scripts import Command
from shadowcat_stores._redis.servers import Server
from shadowcat_stores._redis.urls import Client, read_url, server_of_client, server_of_url
from shadowcat_stores._redis.wire import Call, Reply, transaction
from shadowcat_stores._redis.writes import Writes
from shadowcat_stores.base import Clock, SessionStore
from shadowcat_stores.errors import StoreUnavailable, StoreUnusable
from shadowcat_stores.records import StoreLimits

T = TypeVar("T")

logger = logging.getLogger("shadowcat.stores.redis")

PREFIX: Final = "shadowcat:"
TIMEOUT: Final = 2.0
_PROBE_MS: Final = 1_000
_OLDEST: Final = (6, 2)
"""The version of Redis that the scripts and commands are of; Valkey says which one it is equal to."""

_AT_ONCE: Final = 1_000
"""How many replies the event loop is busy with before others have their turn: some 5 ms."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


class RedisBase(SessionStore):
    """The life of the store, and its way to the server."""

    shared: ClassVar[bool] = True

    def __init__(
        self,
        server: str | Client,
        *,
        prefix: str = PREFIX,
        clock: Clock = time.time,
        limits: StoreLimits | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(clock=clock, limits=limits)
        if "{" in prefix or "}" in prefix:
            raise ValueError(f"the prefix {prefix!r} has a brace: the hash tags of the keys need them")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}: give a number of seconds above 0")
        self.prefix = prefix
        self.timeout = timeout
        self._make_server = server_of_url(server) if isinstance(server, str) else server_of_client(server)
        self._index = Index(prefix)
        self._writes = Writes()
        self._server: Server | None = None
        self._unfinished: set[asyncio.Task[Any]] = set()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the store that the URL names (see `shadowcat_stores.redis`).

        Raises:
            ValueError: it names none; the message says what to write.
        """
        place = read_url(url)
        return cls(
            place.url,
            prefix=PREFIX if place.prefix is None else place.prefix,
            limits=place.limits,
            timeout=TIMEOUT if place.timeout is None else place.timeout,
        )

    def __del__(self) -> None:
        if getattr(self, "is_open", False):
            warnings.warn(
                f"{self!r} was dropped open: await aclose()", ResourceWarning, stacklevel=2, source=self
            )
            if self._server is not None:
                self._server.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self.prefix!r}>"

    # -- life ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and see whether the server takes writes; warn where it may evict live sessions.

        Raises:
            StoreUnavailable: it cannot be reached, or takes no writes; the message says what to do. The store
                is closed as before, and `open` may be called again.
            StoreUnusable: no waiting heals it: credentials, an ACL, a certificate, an old server, other data.
        """
        if self.is_open:
            return
        server = self._make_server(self.timeout)
        # Cancelled half way, a cluster's client would leave connections behind. The timeout bounds it.
        with anyio.CancelScope(shield=True):
            try:
                await self._look_at(server)
            except BaseException:
                await server.aclose()
                raise
        self._server = server
        await super().open()

    async def _look_at(self, server: Server) -> None:
        key = self._index.key
        infos = [Call(key, (("INFO", section),)) for section in ("server", "memory")]
        asked = [self._probe(), transaction(key, *self._index.kinds()), *infos]
        written, kinds, version, memory = await server.run(asked)
        for answer in (written, kinds):
            if isinstance(answer, Exception):
                raise not_opened(answer) from answer
        if self._index.is_foreign(kinds):
            raise StoreUnusable(f"Redis cannot be used: {FOREIGN} (now {self.prefix!r})")
        found = re.match(r"(\d+)\.(\d+)", _said(version).get(b"redis_version", b"").decode())
        if found and (int(found[1]), int(found[2])) < _OLDEST:
            raise StoreUnusable(f"Redis cannot be used: it is version {found[0]}, and 6.2 is needed or newer")
        if _may_evict(_said(memory)):
            logger.warning(
                "Redis may evict live sessions when its memory is full: set maxmemory-policy to noeviction"
            )

    def _probe(self) -> Call:
        return Call(self._index.key, (("SET", self._index.probe, "", "PX", _PROBE_MS),))

    async def aclose(self) -> None:
        """Finish what was begun, then close the connections; a client that was passed in stays open."""
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=self.timeout)
        await super().aclose()
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    async def ping(self) -> None:
        """Return when the server takes a write: full, read-only and broken ones still answer reads."""
        await self._ask(self._probe())

    # -- asking -------------------------------------------------------------------------------------

    def _keys(self, session_id: str) -> tuple[str, str, str, str]:
        """Return the keys of a session: record, tape, streams, and streams by use. They are in one slot.

        Raises:
            ValueError: the id is no text that can be encoded.
        """
        session_id.encode()
        # `%` alone is no escape, so nothing else is written like the empty id, which would be no hash tag.
        key = f"{self.prefix}{{{session_id.translate(_ESCAPES) or '%'}}}:"
        return f"{key}s", f"{key}f", f"{key}e", f"{key}u"

    def _connected(self) -> Server:
        if self._server is None:
            raise StoreUnavailable("the store is not open: enter it with `async with store:` or await open()")
        return self._server

    async def _ask(self, call: Call) -> Reply:
        """Return the answer.

        Raises:
            StoreUnavailable: it is a refusal, or there is none.
        """
        answer = (await self._connected().run((call,)))[0]
        if isinstance(answer, Exception):
            raise unavailable(answer) from answer
        return answer

    async def _ask_all(self, calls: Sequence[Call]) -> list[Reply]:
        """Return the answers to all, asked in one round trip, or a few where they are very many.

        Raises:
            StoreUnavailable: one is a refusal, or missing.
        """
        server = self._connected()
        answers: list[Reply] = []
        for start in range(0, len(calls), _AT_ONCE):
            for answer in await server.run(calls[start : start + _AT_ONCE]):
                if isinstance(answer, Exception):
                    raise unavailable(answer) from answer
                answers.append(answer)
        return answers

    async def _ask_index(self, command: Command) -> Reply:
        return await self._ask(Call(self._index.key, (command,)))

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Bound what asks more than once. A single call is bounded by the connection it is on."""
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis is not available: it took longer than {self.timeout:g} s"
            ) from None

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns. It goes on where the caller is cancelled.

        For what takes a second step that must not be missing where the first was done.
        """
        async with self._in_time():
            return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved: nobody waits for it any more where its caller was cancelled.


def _said(info: Reply) -> dict[bytes, bytes]:
    """Return what INFO says; nothing where an ACL forbids it: the store works without."""
    if not isinstance(info, bytes):
        return {}
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _may_evict(said: dict[bytes, bytes]) -> bool:
    return said.get(b"maxmemory", b"0") != b"0" and said.get(b"maxmemory_policy") != b"noeviction"
