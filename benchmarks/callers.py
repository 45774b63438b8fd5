"""The clients of the audit: how they call, and how they leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from . import messages
from .load import right
from .messages import EXPECTED, FIRST_NUMBER, Target
from .wire import PATIENCE, Connection, Lost, open_session

CLIENTS = 16
GIVE_UP = 0.25
"""Seconds that a client waits which gives up: far longer than the request needs to reach the stub."""

Ending = Callable[[Connection, int, bytes], Awaitable[str]]
"""Sends the call with that number and sees it to some end; a word for what that was."""


async def answered(connection: Connection, number: int, request: bytes) -> str:
    """Wait for the answer: `right`, `wrong`, `error`, an HTTP status, `cut off` or `no answer`."""
    try:
        answer = await asyncio.wait_for(connection.send(request), PATIENCE)
    except Lost:
        return "cut off"
    except TimeoutError:
        connection.abort()
        return "no answer"
    if answer.status != 200:
        return str(answer.status)
    if right(answer.body, EXPECTED.fill(number)):
        return "right"
    return "error" if b'"error":{' in answer.body else "wrong"


async def gives_up(connection: Connection, number: int, request: bytes) -> str:
    """Leave after a while without an answer."""
    with suppress(TimeoutError, Lost):
        answer = await asyncio.wait_for(connection.send(request), GIVE_UP)
        return f"answered {answer.status}"
    connection.abort()
    return "gave up"


async def leaves_after_headers(connection: Connection, number: int, request: bytes) -> str:
    """Leave in the middle of the answer."""
    connection.begun.clear()
    connection.post(request)
    try:
        await asyncio.wait_for(connection.begun.wait(), PATIENCE)
    except TimeoutError:
        return "no answer"
    finally:
        connection.abort()
    return "left"


async def leaves_at_once(connection: Connection, number: int, request: bytes) -> str:
    """Leave as soon as the request is on its way."""
    connection.post(request)
    await asyncio.sleep(0)
    connection.abort()
    return "left"


@dataclass(frozen=True)
class Scenario:
    """Many calls of one kind."""

    title: str
    tool: str
    calls: int
    outcomes: frozenset[str]
    """What may come of a call."""
    ending: Ending = answered
    stateless: bool = False
    """Whether it is called in the revision that knows no sessions."""
    recovers: bool = False
    """Whether the proxy may send requests of its own to bring a session or a stream back."""
    exactly: bool = True
    """Whether each call must reach the upstream; otherwise at most once, since it may be gone too soon."""


@dataclass
class Tally:
    """What the clients did and saw."""

    sent: int = 0
    """HTTP requests, the handshakes of the sessions included."""
    outcomes: Counter[str] = field(default_factory=Counter)


async def play(scenario: Scenario, target: Target) -> Tally:
    """Make the scenario's calls with several clients at once."""
    tally = Tally()
    numbers = iter(range(FIRST_NUMBER, FIRST_NUMBER + scenario.calls))
    clients = min(CLIENTS, scenario.calls)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(scenario, target, numbers, tally))
    return tally


async def _client(scenario: Scenario, target: Target, numbers: Iterator[int], tally: Tally) -> None:
    connection = await Connection.open(target)
    session = "" if scenario.stateless else await open_session(connection, target)
    template = messages.call(target, scenario.tool, session)
    for number in numbers:
        if connection.transport.is_closing():
            tally.sent += connection.sent
            connection = await Connection.open(target)
        tally.outcomes[await scenario.ending(connection, number, template.fill(number))] += 1
    tally.sent += connection.sent
    connection.abort()
