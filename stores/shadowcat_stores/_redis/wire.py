"""Connections that many callers share, on top of redis-py's: it connects, authenticates, parses.

One connection takes what all callers ask. What they ask in one turn of the loop leaves in one write, and
the replies come in the same order, so that a command costs a third of one on a connection of its own.
A caller that is cancelled leaves its reply to nobody: no connection has to be closed for it, and no other
caller can read it. redis-py's own clients send a command again when its connection is lost, though it may
have taken effect; here nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast

from shadowcat_stores._redis.driver import (
    AbstractConnection,
    ExecAbortError,
    RedisConnectionError,
    RedisTimeoutError,
    ResponseError,
    pack_command,
)
from shadowcat_stores._redis.scripts import Command

Reply = Any
"""What the server said: a value, or the exception that stands for its refusal."""


class Call(NamedTuple):
    """Commands that go next to each other to where the key is. The last one's reply is the answer."""

    key: str
    commands: tuple[Command, ...]


def transaction(key: str, *commands: Command) -> Call:
    """Return the call that runs the commands as one step; its answer is the list of their replies.

    For what reads a lot: a script would copy it twice while nobody else is served.
    """
    return Call(key, (("MULTI",), *commands, ("EXEC",)))


class Silent(RedisConnectionError):
    """The server took a command and did not answer in time."""


class Source(Protocol):
    """Where connections come from."""

    async def take(self) -> AbstractConnection:
        """Return a connection, connected, for the caller alone."""

    async def give_back(self, connection: AbstractConnection) -> None:
        """Take it back, disconnected."""


class Link(ABC):
    """One connection from its first to its last moment: a writer, a reader, and an end with a reason."""

    def __init__(self, source: Source, timeout: float) -> None:
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._timeout = timeout
        self._outgoing: list[bytes | bytearray] = []
        self._wanted = asyncio.Event()
        self._task = self._loop.create_task(self._run(), name="shadowcat-redis")

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._source.take()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            if not self.ended:
                self.end(error)
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(connection))
                await self._read(connection)
        except* Exception as errors:  # noqa: BLE001
            if not self.ended:
                self.end(_first(errors))
        finally:
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            with suppress(Exception):
                await self._source.give_back(connection)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            packed, self._outgoing = self._outgoing, []
            await connection.send_packed_command(cast("list[bytes]", packed), check_health=False)

    @abstractmethod
    async def _read(self, connection: AbstractConnection) -> None:
        """Read until the connection is lost."""

    def _send(self, packed: list[bytes | bytearray]) -> None:
        self._outgoing += packed
        self._wanted.set()

    def end(self, error: Exception) -> None:
        """Use the connection no more, for this reason. To be called once."""
        self.ended = True
        if asyncio.current_task() is not self._task:
            self._task.cancel()

    def abandon(self) -> None:
        """Let the loop close the connection, if there still is one: the owner was dropped."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def aclose(self) -> None:
        """End, and return when the connection is closed."""
        if not self.ended:
            self.end(RedisConnectionError("the store was closed"))
        await asyncio.wait([self._task])


class Line(Link):
    """A connection for commands."""

    def __init__(self, source: Source, timeout: float) -> None:
        self._waiting: deque[tuple[asyncio.Future[list[Reply]], Sequence[Call], int, float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        super().__init__(source, timeout)

    def submit(self, calls: Sequence[Call]) -> asyncio.Future[list[Reply]]:
        """Send the calls at once; the future gets the answer to each, and never an exception."""
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        # What cannot be sent fails here, before anybody waits for its reply.
        commands = [command for call in calls for command in call.commands]
        packed = [part for command in commands for part in _packed(command)]
        due = self._loop.time() + self._timeout
        self._waiting.append((future, calls, len(commands), due))
        if self._watch is None:
            self._watch = self._loop.call_at(due, self._look_for_silence)
        self._send(packed)
        return future

    async def _read(self, connection: AbstractConnection) -> None:
        replies: list[Reply] = []
        while True:
            replies.append(await self._reply(connection))
            if not self._waiting:
                raise RedisConnectionError("the server said something unasked")
            future, calls, count, _ = self._waiting[0]
            if len(replies) == count:
                self._waiting.popleft()
                if not future.done():
                    future.set_result(_answers(calls, replies))
                replies = []

    async def _reply(self, connection: AbstractConnection) -> Reply:
        while True:
            try:
                return await connection.read_response(disconnect_on_error=False)
            except ResponseError as refusal:
                return refusal
            except RedisTimeoutError:
                # A client that was passed in may bound each read. Being idle is no fault, and
                # `_look_for_silence` sees to the rest.
                continue

    def _look_for_silence(self) -> None:
        # The first in line has waited the longest, so one timer does for all.
        self._watch = None
        if not self._waiting:
            return
        due = self._waiting[0][3]
        if due <= self._loop.time():
            self.end(Silent(f"it did not answer within {self._timeout:g} s"))
        else:
            self._watch = self._loop.call_at(due, self._look_for_silence)

    def end(self, error: Exception) -> None:
        """Use the connection no more; whoever waits gets the error in place of each reply."""
        super().end(error)
        if self._watch is not None:
            self._watch.cancel()
        while self._waiting:
            future, calls, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_result([error] * len(calls))


class Subscription(Link):
    """A connection for what is published."""

    def __init__(
        self,
        source: Source,
        timeout: float,
        heard: Callable[[bytes], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self._heard = heard
        self._lost = lost
        super().__init__(source, timeout)

    def send(self, *command: str) -> None:
        """Send SUBSCRIBE or UNSUBSCRIBE; its confirmation is heard as well."""
        self._send(_packed(command))

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                message = await connection.read_response(disconnect_on_error=False, push_request=True)
            except RedisTimeoutError:
                continue
            # A message or a confirmation: kind, channel, and what does not matter here.
            self._heard(message[1])

    def end(self, error: Exception) -> None:
        """Use the connection no more, for this reason."""
        super().end(error)
        self._lost(error)


def _packed(command: Command) -> list[bytes | bytearray]:
    """Return the parts of what is to be sent. What is large is one of them: it is not copied."""
    if bytearray not in map(type, command):
        return [pack_command(command)]  # type: ignore[arg-type]
    large = [place for place, each in enumerate(command) if isinstance(each, bytearray)]
    parts: list[bytes | bytearray] = []
    head, begin = b"*%d" % len(command), 0
    for place in large:
        argument = cast("bytearray", command[place])
        parts += (b"%b%b$%d\r\n" % (head, _without_count(command[begin:place]), len(argument)), argument)
        head, begin = b"", place + 1
    parts.append(_without_count(command[begin:]))
    return parts


def _without_count(arguments: Command) -> bytes:
    """Return the arguments packed, from the line's end before them on."""
    packed: bytes = pack_command(arguments)  # type: ignore[arg-type]
    return packed[packed.index(b"\r") :]


def _answers(calls: Sequence[Call], replies: list[Reply]) -> list[Reply]:
    if len(replies) == len(calls):
        return replies
    answers, end = [], 0
    for call in calls:
        start, end = end, end + len(call.commands)
        answer = replies[end - 1]
        if isinstance(answer, ExecAbortError):
            # Why, the command before it says that was not taken.
            answer = _first_refusal(replies[start:end])
        elif isinstance(answer, list):
            answer = _first_refusal(answer) or answer
        answers.append(answer)
    return answers


def _first_refusal(replies: list[Reply]) -> Exception | None:
    return next((reply for reply in replies if isinstance(reply, Exception)), None)


def _first(errors: BaseExceptionGroup[Any]) -> Exception:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RedisConnectionError(repr(error))
