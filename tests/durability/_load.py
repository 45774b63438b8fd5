"""Clients that know what their session's tape must hold, and a server that answers them by number."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2

from shadowcat_stores import Direction, Frame
from tests.support.proxying import ACCEPT, INITIALIZE, request
from tests.support.upstream import INITIALIZE_RESULT, Connection, Received, ScriptedUpstream, result

_JSON = {"Accept": ACCEPT, "Content-Type": "application/json"}
_numbers = count(1)
"""Of all calls in this process: no two have the same id."""


class Traffic:
    """A clock that goes while messages pass.

    Where none passes for longer than `_STILL` seconds, the machine does something else, or all of it hangs.
    How long that lasts says nothing of the proxy, which cannot write meanwhile either.
    """

    _STILL = 0.02

    def __init__(self) -> None:
        self._now = 0.0
        self._passed_at = time.monotonic()

    def now(self) -> float:
        """Return the seconds so far. A message passes."""
        at = time.monotonic()
        self._now += min(at - self._passed_at, self._STILL)
        self._passed_at = at
        return self._now


_traffic = Traffic()


class Moments:
    """Counts what happens, and acts when the chosen moment has come: as random as its number."""

    def __init__(self, chosen: int, act: Callable[[], None]) -> None:
        self.struck_at = 0.0
        """When it was, on the traffic's clock; 0 before."""
        self._left = chosen
        self._act = act

    def pass_(self) -> None:
        """Count one."""
        now = _traffic.now()
        self._left -= 1
        if self._left == 0:
            self.struck_at = now
            self._act()


class NumberedServer:
    """Answers a call with as many numbered events as it asks for before its result; with JSON for none."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.executed: Counter[int] = Counter()
        """How often each call has arrived, by its id."""
        self.moments: Moments | None = None
        self._upstream = upstream
        upstream.script = self.answer

    async def answer(self, received: Received, connection: Connection) -> None:
        if received.method != "POST":
            await connection.respond()
            return
        message = received.message
        self.executed[message["id"]] += 1
        self._pass()
        events = message["params"]["events"]
        if not events:
            (body,) = answers(message["id"], 0)
            await connection.respond(body, ("Content-Type", "application/json"))
            return
        await connection.start_stream()
        for each in answers(message["id"], events):
            await connection.chunk(b"data: " + each + b"\n\n")
            self._pass()
        await connection.end_stream()

    def _pass(self) -> None:
        if self.moments is not None:
            self.moments.pass_()


def answers(call: int, events: int) -> list[bytes]:
    """Return the messages that a call is answered with."""
    return [*(_progress(call, number) for number in range(events)), result(call, {"events": events})]


def _progress(call: int, number: int) -> bytes:
    params = {"progressToken": call, "progress": number}
    return json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}).encode()


@dataclass
class Item:
    """A message that a tape must hold in its place."""

    direction: Direction
    raw: bytes
    received_at: float | None = None
    """When the client had it whole, on the traffic's clock. Before that nobody was promised anything."""


@dataclass
class Conversation:
    """One client in a session of its own; it makes one call after the other."""

    http: httpx2.AsyncClient
    session_id: str = ""
    items: list[Item] = field(default_factory=list)
    moments: Moments | None = None

    async def begin(self, url: str) -> None:
        """Begin the session."""
        raw = json.dumps({**INITIALIZE, "id": next(_numbers)}).encode()
        answer = Item("server", result(json.loads(raw)["id"], INITIALIZE_RESULT))
        self.items = [Item("client", raw), answer]
        async with self.http.stream("POST", url, content=raw, headers=_JSON) as response:
            assert response.status_code == 200, (await response.aread(), response.status_code)
            # From here on the client has a session, whatever becomes of the body.
            self.session_id = response.headers["mcp-session-id"]
            self._pass()
            assert await response.aread() == answer.raw
        answer.received_at = _traffic.now()
        self._pass()

    async def call(self, url: str, events: int = 0) -> None:
        """Make a call that must succeed."""
        message: dict[str, Any] = request("tools/call", next(_numbers), {"events": events})
        raw = json.dumps(message).encode()
        expected = [Item("server", each) for each in answers(message["id"], events)]
        self.items += [Item("client", raw), *expected]
        self._pass()
        headers = {**_JSON, "Mcp-Session-Id": self.session_id}
        async with self.http.stream("POST", url, content=raw, headers=headers) as response:
            assert response.status_code == 200, (await response.aread(), response.status_code)
            messages = [each async for each in self._receive(response, iter(expected))]
        assert messages == [each.raw for each in expected]

    async def _receive(self, response: httpx2.Response, expected: Any) -> AsyncIterator[bytes]:
        if response.headers["content-type"] == "application/json":
            body = await response.aread()
            self._note(next(expected))
            yield body
            return
        rest = b""
        async for chunk in response.aiter_raw():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                if data := block.partition(b"data: ")[2]:  # else it only carries an id
                    self._note(next(expected))
                    yield data
        assert rest == b""

    def _note(self, item: Item) -> None:
        item.received_at = _traffic.now()
        self._pass()

    def _pass(self) -> None:
        if self.moments is not None:
            self.moments.pass_()

    @property
    def known(self) -> int:
        """How many messages the tape should hold, for all that the client can know."""
        return max((place for place, each in enumerate(self.items, 1) if each.received_at), default=0)

    def check(self, tape: Sequence[Frame]) -> list[Item]:
        """Return what the client had received and the tape does not hold; it holds the rest, in order.

        The conversation goes on from what the tape holds.
        """
        assert [frame.seq for frame in tape] == list(range(1, len(tape) + 1))
        expected = [(each.direction, each.raw) for each in self.items]
        assert [(each.direction, each.envelope.raw) for each in tape] == expected[: len(tape)]
        lost = self.items[len(tape) : self.known]
        del self.items[len(tape) :]
        return lost
