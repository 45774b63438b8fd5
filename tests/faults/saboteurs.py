"""Upstreams that misbehave as a bad proxy would: the harness must notice each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.ledger import Ledger
from tests.faults.log import Log
from tests.faults.run import UpstreamOf
from tests.faults.schedule import Schedule
from tests.faults.upstream import NumberingUpstream, numbering_upstream
from tests.faults.wire import receive, sent
from tests.support.upstream import Connection, Received

_VICTIM = 2
"""The number of the message that is meddled with."""


class Duplicates(NumberingUpstream):
    """Sends a message twice."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        once = super().event(log, number, message)
        return once + once if number == _VICTIM else once


class Drops(NumberingUpstream):
    """Leaves a message out."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        return b": nothing\n\n" if number == _VICTIM else super().event(log, number, message)


class Reorders(NumberingUpstream):
    """Sends a message after the one that follows it."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        if number == _VICTIM:
            return b": later\n\n"
        own = super().event(log, number, message)
        late = super().event(log, _VICTIM, log.messages[_VICTIM - 1]) if number == _VICTIM + 1 else b""
        return own + late


class MixesUp(NumberingUpstream):
    """Sends a call a message of another call's."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        own = super().event(log, number, message)
        return own.replace(b'"progressToken": 1,', b'"progressToken": 2,')


class Renumbers(NumberingUpstream):
    """Gives an event the id of another."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        return super().event(log, 1 if number == _VICTIM else number, message)


class FallsSilent(NumberingUpstream):
    """Ends a stream as if it were complete, before its answer."""

    def event(self, log: Log, number: int, message: bytes) -> bytes:
        whole = b'"result"' in message
        return b": the end\n\n" if whole else super().event(log, number, message)


class Hangs(NumberingUpstream):
    """Never goes on after some message."""

    async def _follow(self, log: Log, position: int, connection: Connection) -> None:
        await self._ledger.until(lambda: log.messages)
        await connection.chunk(self.event(log, 1, log.messages[0]))
        await asyncio.Event().wait()


class ExecutesTwice(NumberingUpstream):
    """Gets a call a second time, from somebody who tries again."""

    _is_done = False

    async def _answer(self, received: Received, connection: Connection) -> None:
        if received.rpc_method == "tools/call" and not self._is_done:
            self._is_done = True
            session = str((received.header(b"mcp-session-id") or b"").decode())
            async with sent(self.url, "POST", received.message, Mcp_Session_Id=session) as (line, reader):
                await receive(line, reader)
        await super()._answer(received, connection)


def upstream_of(kind: type[NumberingUpstream]) -> UpstreamOf:
    """Return what runs one of this kind."""
    return lambda schedule, ledger: numbering_upstream(schedule, ledger, kind)


@asynccontextmanager
async def haunted(schedule: Schedule, ledger: Ledger) -> AsyncIterator[NumberingUpstream]:
    """Run a server with a connection from somebody who never leaves."""
    async with numbering_upstream(schedule, ledger) as upstream, sent(upstream.url, "HEAD"):
        yield upstream
