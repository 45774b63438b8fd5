"""Where commands go: to the one server (a Sentinel's primary is one), or to the node of a cluster that has
the key's slot.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, cast

from shadowcat_stores._redis.driver import (
    AbstractConnection,
    AskError,
    ClusterNode,
    Connection,
    ConnectionPool,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisCluster,
    RedisConnectionError,
    ResponseError,
    TryAgainError,
)
from shadowcat_stores._redis.news import News
from shadowcat_stores._redis.scripts import in_full
from shadowcat_stores._redis.wire import Call, Line, Reply, Source

_REDIRECTIONS: Final = 5


class Server(ABC):
    """The backend, connected as long as the store is open."""

    def __init__(self, timeout: float, close: Callable[[], Awaitable[None]] | None) -> None:
        self.news = News(self._any_source, timeout)
        self._timeout = timeout
        self._close = close

    async def run(self, calls: Sequence[Call]) -> list[Reply]:
        """Return the answer to each call, which may be an exception; all leave at once."""
        if not calls:
            return []
        answers = await self._run(calls)
        lost = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if lost:
            # The server was restarted, or is new to the scripts.
            again = [Call(calls[place].key, (in_full(calls[place].commands[0]),)) for place in lost]
            for place, answer in zip(lost, await self._run(again), strict=True):
                answers[place] = answer
        return answers

    @abstractmethod
    async def _run(self, calls: Sequence[Call]) -> list[Reply]: ...

    @abstractmethod
    def _any_source(self) -> Source:
        """Return where a connection comes from that hears what is published."""

    @abstractmethod
    def _lines(self) -> list[Line]:
        """Return the connections there are."""

    def abandon(self) -> None:
        """Close all connections without waiting: the store was dropped."""
        self.news.abandon()
        for line in self._lines():
            line.abandon()

    async def aclose(self) -> None:
        """Close all connections, and the client if it is the store's own."""
        await self.news.aclose()
        for line in self._lines():
            await line.aclose()
        if self._close is not None:
            await self._close()


class SingleServer(Server):
    """One server, by a pool of connections to it, of which it takes one for commands and one for news."""

    def __init__(
        self, pool: ConnectionPool, timeout: float, close: Callable[[], Awaitable[None]] | None
    ) -> None:
        super().__init__(timeout, close)
        self._source = _Pooled(pool)
        self._line: Line | None = None

    async def _run(self, calls: Sequence[Call]) -> list[Reply]:
        line = self._line
        if line is None or line.ended:
            line = self._line = Line(self._source, self._timeout)
        answers = await line.submit(calls)
        if any(isinstance(answer, ReadOnlyError) for answer in answers) and not line.ended:
            # It was the primary and is no more. Its name may lead to the new one by now.
            line.end(RedisConnectionError("the server became a read-only replica"))
        return answers

    def _any_source(self) -> Source:
        return self._source

    def _lines(self) -> list[Line]:
        return [] if self._line is None else [self._line]


class ClusterServer(Server):
    """A cluster, by a client that knows which node has which slot; one connection to each node."""

    def __init__(
        self, client: RedisCluster, timeout: float, close: Callable[[], Awaitable[None]] | None
    ) -> None:
        super().__init__(timeout, close)
        self._client = client
        self._by_node: dict[str, Line] = {}
        self._learning: set[asyncio.Task[None]] = set()

    async def _run(self, calls: Sequence[Call]) -> list[Reply]:
        answers: list[Reply] = [None] * len(calls)
        todo = list(range(len(calls)))
        try:
            async with asyncio.timeout(self._timeout):
                for _ in range(_REDIRECTIONS):
                    _ = await self._client.initialize()
                    todo = await self._run_once(calls, todo, answers)
                    if not todo:
                        return answers
            for place in todo:
                answers[place] = TryAgainError(str(answers[place]))
        except Exception as error:  # noqa: BLE001 - the client's own errors have no common root
            for place in todo:
                answers[place] = error
        return answers

    async def _run_once(self, calls: Sequence[Call], todo: list[int], answers: list[Reply]) -> list[int]:
        """Run those to do; return those that have to go elsewhere."""
        by_node: dict[str, tuple[ClusterNode, list[int]]] = {}
        for place in todo:
            node = cast("ClusterNode", self._client.get_node_from_key(calls[place].key))
            by_node.setdefault(node.name, (node, []))[1].append(place)
        running = [
            (node, places, self._line_to(node).submit([calls[place] for place in places]))
            for node, places in by_node.values()
        ]
        elsewhere = []
        for node, places, answering in running:
            for place, answer in zip(places, await answering, strict=True):
                answers[place] = answer
                if isinstance(answer, MovedError):
                    await self._learn(node, calls[place].key)
                    elsewhere.append(place)
                elif isinstance(answer, AskError):
                    answers[place] = await self._ask(answer, calls[place])
                elif isinstance(answer, Exception) and not isinstance(answer, ResponseError):
                    self._learn_later(node, calls[place].key)
        return elsewhere

    def _line_to(self, node: ClusterNode) -> Line:
        line = self._by_node.get(node.name)
        if line is None or line.ended:
            # A silent node is found silent before the caller's time is over, so that the client learns of it.
            line = self._by_node[node.name] = Line(_Node(node), self._timeout * 0.9)
        return line

    async def _learn(self, node: ClusterNode, key: str) -> None:
        """Let the client meet the same answer: it follows it, and knows the way from then on."""
        with suppress(Exception):
            async with asyncio.timeout(self._timeout):
                await self._client.execute_command("EXISTS", key, target_nodes=node)

    def _learn_later(self, node: ClusterNode, key: str) -> None:
        if not self._learning:
            task = asyncio.get_running_loop().create_task(self._learn(node, key))
            self._learning.add(task)
            task.add_done_callback(self._learning.discard)

    async def _ask(self, asked: AskError, call: Call) -> Reply:
        """Run the call where its slot is being moved to."""
        node = self._client.get_node(host=asked.host, port=asked.port)
        if node is None or len(call.commands) > 1:
            return asked
        answers = await self._line_to(node).submit([Call(call.key, (("ASKING",), *call.commands))])
        return answers[0]

    def _any_source(self) -> Source:
        return _AnyNode(self._client)

    def _lines(self) -> list[Line]:
        return list(self._by_node.values())

    async def aclose(self) -> None:
        """Close all connections, and the client if it is the store's own."""
        for task in list(self._learning):
            task.cancel()
        await super().aclose()


class _Pooled:
    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def take(self) -> AbstractConnection:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        return cast("AbstractConnection", connection)

    async def give_back(self, connection: AbstractConnection) -> None:
        await self._pool.release(connection)


class _Node:
    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    async def take(self) -> AbstractConnection:
        connection = self._node.acquire_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            self._node.release(connection)
            raise
        return connection

    async def give_back(self, connection: AbstractConnection) -> None:
        self._node.release(cast("Connection", connection))


class _AnyNode:
    """Any node will do: what is published reaches all of a cluster."""

    def __init__(self, client: RedisCluster) -> None:
        self._client = client
        self._node: _Node | None = None

    async def take(self) -> AbstractConnection:
        _ = await self._client.initialize()
        self._node = _Node(self._client.get_random_node())
        return await self._node.take()

    async def give_back(self, connection: AbstractConnection) -> None:
        if self._node is not None:
            await self._node.give_back(connection)
