"""An MCP server that numbers every message and counts every call; it can be cut, restarted, and forget."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from tests.faults.ledger import Heard, Ledger
from tests.faults.log import Log, event_id
from tests.faults.schedule import Schedule
from tests.support.ports import free_port
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result

_JSON = ("Content-Type", "application/json")


class NumberingUpstream:
    """One server of the kind that the schedule names."""

    def __init__(self, schedule: Schedule, ledger: Ledger) -> None:
        self.scripted = ScriptedUpstream()
        self.scripted.handshake = self._answer
        self.sessions: dict[str, int] = {}
        """The client of each session that is known."""
        self.calls: dict[int, Log] = {}
        self.gets: dict[int, Log] = {}
        self._schedule = schedule
        self._ledger = ledger
        self._begun = 0
        self._connections: dict[int, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = free_port()
        self._listening: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/mcp"

    async def listen(self) -> None:
        """Take connections, on the same port as ever."""
        listening = self._listening = socket.create_server(("127.0.0.1", self._port), backlog=100)
        listening.setblocking(False)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        # asyncio's own servers forget a connection that they accept while they are closed: it would hang.
        connection, _ = listening.accept()
        loop = asyncio.get_running_loop()
        self._run(loop.connect_accepted_socket(self._protocol, connection))

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self.scripted.accept)

    @property
    def is_listening(self) -> bool:
        return self._listening is not None

    def close(self) -> None:
        """Take no more connections, and cut those that there are."""
        self._stop_listening()
        for log in (*self.calls.values(), *self.gets.values()):
            self._lose(log)
        for connection in self._connections.values():
            connection.cut()

    def _stop_listening(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def cut(self, number: int) -> str | None:
        """Cut one of the connections that wait for messages, or are being answered; return whose."""
        logs = [each for each in (*self.calls.values(), *self.gets.values()) if each.follower is not None]
        if not logs:
            return None
        log = logs[number % len(logs)]
        connection = log.follower
        self._lose(log)
        assert connection is not None
        connection.cut()
        return log.name

    def hurry(self) -> None:
        """Let what is under way wait for no client: a proxy that ends could not bring the two together."""
        for log in self.calls.values():
            log.hurries = True

    def forget(self) -> None:
        """Know no session any more, nor what could be resumed in them. What is under way goes on."""
        self.sessions.clear()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stop_listening()
        await self.scripted.aclose()

    def _lose(self, log: Log) -> None:
        if log.follower is None:
            return
        log.follower = None
        self._ledger.note(f"the upstream's connection of {log.name} is cut")
        heard = self._ledger.heard[log.name]
        if heard.call is None:
            self._ledger.lost_gets[heard.client] += 1
        else:
            self._ledger.broken.add(heard.call)

    async def _answer(self, received: Received, connection: Connection) -> None:
        self._connections[id(connection)] = connection
        method = received.rpc_method if received.method == "POST" else None
        session = (received.header(b"mcp-session-id") or b"").decode()
        if method == "initialize":
            await self._initialize(received, connection)
        elif session not in self.sessions:
            await self._refuse(connection, "404 Not Found", "Session not found", received)
        elif received.method == "GET":
            await self._get(received, connection, session)
        elif received.method == "DELETE":
            del self.sessions[session]
            await connection.respond()
        elif method == "tools/call":
            await self._call(received.message, connection, session)
        elif method is not None and "id" in received.message:
            await connection.respond(result(received.message["id"], {}), _JSON)
        else:
            await connection.respond(status="202 Accepted")

    async def _initialize(self, received: Received, connection: Connection) -> None:
        self._begun += 1
        session = f"upstream-{self._begun}"
        self.sessions[session] = int(received.message["params"]["clientInfo"]["name"].removeprefix("client-"))
        body = result(received.message["id"], INITIALIZE_RESULT)
        await connection.respond(body, _JSON, ("Mcp-Session-Id", session))

    async def _refuse(
        self, connection: Connection, status: str, message: str, received: Received | None = None
    ) -> None:
        known = received.message.get("id") if received is not None and received.body else None
        error = {"jsonrpc": "2.0", "id": known, "error": {"code": -32001, "message": message}}
        await connection.respond(json.dumps(error).encode(), _JSON, status=status)

    # -- calls ------------------------------------------------------------------------------------------

    async def _call(self, message: Any, connection: Connection, session: str) -> None:
        params = message["params"]
        call = params["call"]
        log = self.calls.setdefault(call, Log(f"call {call}", session, polls=params["polls"]))
        log.follower = connection
        self._ledger.executed[call] += 1
        if connection.writer.is_closing():  # it was cut with the request in it
            self._ledger.broken.add(call)
        self._run(self._execute(log, params))
        self._ledger.tick(f"the upstream executes {log.name}")
        if params["events"]:
            await self._stream(log, 0, connection)
            return
        await self._ledger.until(lambda: log.is_whole)
        await connection.respond(log.messages[-1], _JSON)
        if log.follower is connection:
            log.follower = None

    async def _execute(self, log: Log, params: Any) -> None:
        """Give out the messages, not too far ahead of the client."""
        heard = self._ledger.heard[log.name]
        padding = "x" * params["padding"]
        messages = [
            _notification("progress", {"progressToken": heard.call, "progress": number, "message": padding})
            for number in range(1, params["events"] + 1)
        ]
        messages.append(result(heard.call, {"number": params["events"] + 1, "padding": padding}))
        for number, message in enumerate(messages, 1):
            await self._ledger.until(partial(self._may_give, log, heard, number, params["ahead"]))
            self._give(log, message)
        log.is_whole = True
        self._ledger.note(f"the upstream has finished {log.name}")

    def _may_give(self, log: Log, heard: Heard, number: int, ahead: int) -> bool:
        return self._is_over(heard) or log.hurries or number <= max(heard.last, log.passed) + ahead

    def _is_over(self, heard: Heard) -> bool:
        return heard.over or self._ledger.is_given_up

    def _give(self, log: Log, message: bytes) -> None:
        log.messages.append(message)
        self._ledger.tick(f"the upstream gives {len(log.messages)} of {log.name}")

    # -- GET streams ------------------------------------------------------------------------------------

    async def _get(self, received: Received, connection: Connection, session: str) -> None:
        client = self.sessions[session]
        last = received.header(b"last-event-id")
        if last is not None and self._schedule.upstream == "resumable":
            await self._resume(last.decode(), connection, session)
        elif not self._schedule.has_get or f"get {client}" not in self._ledger.heard:
            self._ledger.note(f"the upstream refuses a GET of client {client}, which listens to nothing")
            await connection.respond(status="405 Method Not Allowed")
        else:
            log = self.gets.get(client)
            if log is None:
                log = self.gets[client] = Log(f"get {client}", session)
                self._run(self._notify(log, client))
            log.session = session
            log.passed = len(log.messages)
            self._ledger.note(f"{log.name} is opened at the upstream after {log.passed}")
            log.follower = connection
            await self._stream(log, log.passed, connection)

    async def _resume(self, last: str, connection: Connection, session: str) -> None:
        name, _, number = last.rpartition("/")
        logs = {log.name: log for log in (*self.calls.values(), *self.gets.values())}
        log = logs.get(name.replace("-", " "))
        if log is None or log.session != session:
            await self._refuse(connection, "400 Bad Request", "Unknown event id")
            return
        self._ledger.note(f"{log.name} is resumed at the upstream after {number}")
        log.follower = connection
        await self._stream(log, int(number), connection)

    async def _notify(self, log: Log, client: int) -> None:
        """Give out notifications for as long as the client listens."""
        heard = self._ledger.heard[log.name]
        while not self._is_over(heard):
            number = len(log.messages) + 1
            await self._ledger.until(partial(self._may_notify, log, heard))
            data = {"client": client, "number": number}
            self._give(log, _notification("message", {"level": "info", "data": data}))

    def _may_notify(self, log: Log, heard: Heard) -> bool:
        if heard.begun != log.begun:
            log.begun, log.passed = heard.begun, len(log.messages)
        # Without an event store nobody would ever get what is given out now.
        is_kept = log.follower is not None or self._resumes
        return self._is_over(heard) or (is_kept and self._may_give(log, heard, len(log.messages) + 1, 3))

    # -- one stream to one connection -------------------------------------------------------------------

    async def _stream(self, log: Log, after: int, connection: Connection) -> None:
        leaving = asyncio.create_task(connection.peer_left())
        leaving.add_done_callback(lambda task: self._left(task, log, connection))
        try:
            await connection.start_stream()
            if self._resumes and self._schedule.primes:
                await connection.chunk(b"id: %b\ndata: \n\n" % event_id(log.name, after).encode())
            await self._follow(log, after, connection)
        finally:
            leaving.cancel()
            await asyncio.wait([leaving])
        await connection.end_stream()
        if log.follower is connection:
            log.follower = None

    async def _follow(self, log: Log, position: int, connection: Connection) -> None:
        end = position + log.polls
        while not (log.is_whole and position == len(log.messages)):
            await self._ledger.until(partial(self._may_follow, log, position, connection))
            if log.follower is not connection:
                connection.cut()
                raise ConnectionError
            for message in log.messages[position:]:
                position += 1
                await connection.chunk(self.event(log, position, message))
                if position == end and log.polls:
                    await connection.chunk(b"retry: 10\n\n")
                    return

    def _may_follow(self, log: Log, position: int, connection: Connection) -> bool:
        return len(log.messages) > position or log.is_whole or log.follower is not connection

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        """Return the bytes of one event."""
        event = b"data: %b\n\n" % message
        return b"id: %b\n%b" % (event_id(log.name, number).encode(), event) if self._resumes else event

    def _left(self, watch: asyncio.Task[None], log: Log, connection: Connection) -> None:
        if log.follower is connection and not watch.cancelled():
            log.follower = None
            self._ledger.note(f"the proxy has left {log.name}")

    @property
    def _resumes(self) -> bool:
        return self._schedule.upstream == "resumable"

    def _run(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _notification(name: str, params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": f"notifications/{name}", "params": params}).encode()


@asynccontextmanager
async def numbering_upstream(
    schedule: Schedule, ledger: Ledger, kind: type[NumberingUpstream] = NumberingUpstream
) -> AsyncIterator[NumberingUpstream]:
    """Run one."""
    upstream = kind(schedule, ledger)
    await upstream.listen()
    try:
        yield upstream
    finally:
        await upstream.aclose()
