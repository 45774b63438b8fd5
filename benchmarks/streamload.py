"""Clients that read streams: how long each event took, how many came, and what that cost the proxy.

`python -m benchmarks.streamload paced --url URL --streams 16 --seconds 2 --pid PROXY` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic_ns, perf_counter
from typing import Any

import uvloop

from . import messages
from .load import percentiles
from .messages import FIRST_NUMBER, Target
from .processes import cpu_seconds
from .wire import PATIENCE, Connection, Lost, open_session

RATE = 50
"""Events per second of a paced stream."""
WARMUP = 0.5
"""Seconds at the beginning of paced streams that do not count, and at their end."""
GAP = 0.002
"""Seconds between the first event and the result of a short stream."""
TICK = re.compile(rb'"data":\{"number":(\d+),"at":(\d+)\}')

Figures = dict[str, Any]


@dataclass(eq=False)
class Reader(Connection):
    """A client that looks at each event as it comes."""

    on_event: Callable[[bytes], None] = field(kw_only=True)

    def on_body(self, body: bytes) -> None:
        *events, self.body = (self.body + body).split(b"\n\n")
        for event in events:
            self.on_event(event)


@dataclass(eq=False)
class Counting(Connection):
    """A client that counts events, and keeps the end of what came."""

    events: int = 0

    def on_body(self, body: bytes) -> None:
        # What ends an event may come in two parts.
        self.events += body.count(b"\n\n") + (self.body.endswith(b"\n") and body.startswith(b"\n"))
        self.body = (self.body[-1000:] + body)[-1000:]


@dataclass
class Paced:
    """Streams at a pace, and the latency of their events while it counts."""

    count: int
    """Events of each."""
    latencies: list[float] = field(default_factory=list)
    counts: bool = False
    errors: Counter[str] = field(default_factory=Counter)

    def reader(self, begun: asyncio.Event) -> Callable[[bytes], None]:
        """What takes the events of one stream, and tells of the first."""
        last = 0

        def on_event(event: bytes) -> None:
            nonlocal last
            now = monotonic_ns()
            if tick := TICK.search(event):
                number = int(tick[1])
                self.errors["lost or twice"] += number != last + 1
                last = number
                begun.set()
                if self.counts:
                    self.latencies.append((now - int(tick[2])) / 1e9)
            elif b'"result"' in event:
                self.errors["cut off"] += last != self.count

        return on_event

    async def stream(
        self, target: Target, ready: asyncio.Barrier, delay: float, begun: asyncio.Event
    ) -> None:
        """One client with a session of its own: begins when all have one, a little after the one before."""
        connection = await Reader.open(target, on_event=self.reader(begun))
        session = await open_session(connection, target)
        await ready.wait()
        await asyncio.sleep(delay)
        request = messages.call(target, "ticks", session, rate=RATE, count=self.count).fill(FIRST_NUMBER)
        try:
            await connection.send(request)
        except Lost:
            self.errors["connection lost"] += 1
        await leave(connection, target, session)


async def paced(target: Target, streams: int, seconds: float, pid: int) -> Figures:
    """`streams` at `RATE`: latencies, and CPU per event while all of them run."""
    found, ready = Paced(round(RATE * (2 * WARMUP + seconds))), asyncio.Barrier(streams)
    begun = [asyncio.Event() for _ in range(streams)]
    async with asyncio.timeout(2 * PATIENCE + seconds), asyncio.TaskGroup() as group:
        for number, event in enumerate(begun):
            group.create_task(found.stream(target, ready, number / streams / RATE, event))
        for event in begun:
            await event.wait()
        await asyncio.sleep(WARMUP)
        before, found.counts = cpu_of(pid), True
        await asyncio.sleep(seconds)
        found.counts, after = False, cpu_of(pid)
    used = 1e6 * (after - before) / max(1, len(found.latencies))
    return {**figures(found.latencies, found.errors), "cpu": used}


async def flood(target: Target, streams: int, seconds: float, pid: int) -> Figures:
    """One stream of small events, as many as pass in `seconds`."""
    opener = await Connection.open(target)
    session = await open_session(opener, target)
    errors: Counter[str] = Counter()
    counting = await Counting.open(target)
    before, began = cpu_of(pid), perf_counter()
    request = messages.call(target, "burst", session, seconds=seconds).fill(FIRST_NUMBER)
    try:
        answer = await asyncio.wait_for(counting.send(request), PATIENCE + 10 * seconds)
    except (Lost, TimeoutError) as error:
        errors[repr(error)] += 1
    else:
        said = re.search(rb'"text":"(\d+)"', answer.body)
        # A proxy may begin a stream with an event of its own, which has an id and no data.
        if not said or not 1 <= counting.events - int(said[1]) <= 2:
            errors["lost or twice"] += 1
    took, used = perf_counter() - began, cpu_of(pid) - before
    await leave(opener, target, session)
    counting.abort()
    return {"rate": counting.events / took, "cpu": 1e6 * used / max(1, counting.events), "errors": +errors}


async def first(target: Target, streams: int, seconds: float, pid: int) -> Figures:
    """Short streams, one after the other: from the request to the first event."""
    seen: list[int] = []

    def seen_at(event: bytes) -> None:
        if TICK.search(event):
            seen.append(monotonic_ns())

    connection = await Reader.open(target, on_event=seen_at)
    session = await open_session(connection, target)
    template = messages.call(target, "ticks", session, rate=1 / GAP, count=1)
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    number, end = FIRST_NUMBER, perf_counter() + seconds
    while perf_counter() < end:
        seen.clear()
        began = monotonic_ns()
        try:
            await asyncio.wait_for(connection.send(template.fill(number)), PATIENCE)
            latencies.append((seen[0] - began) / 1e9)
        except (Lost, TimeoutError, IndexError) as error:
            errors[repr(error)] += 1
            break
        number += 1
    await leave(connection, target, session)
    return figures(latencies, errors)


async def leave(connection: Connection, target: Target, session: str) -> None:
    """End the session; where the connection is lost, so is that."""
    with suppress(Lost, TimeoutError):
        await asyncio.wait_for(connection.send(messages.delete(target, session)), PATIENCE)
    connection.abort()


def cpu_of(pid: int) -> float:
    return cpu_seconds(pid) if pid else 0.0


def figures(latencies: list[float], errors: Counter[str]) -> Figures:
    latency = percentiles(sorted(latencies), (50, 95, 99)) if latencies else {}
    return {"events": len(latencies), "latency_us": latency, "errors": +errors}


KINDS: dict[str, Callable[[Target, int, float, int], Awaitable[Figures]]] = {
    "paced": paced,
    "flood": flood,
    "first": first,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streamload", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pid", type=int, default=0, help="the proxy, for its CPU")
    given = parser.parse_args()
    work = KINDS[given.kind](Target.of(given.url), given.streams, given.seconds, given.pid)

    async def run() -> Figures:
        return await work

    print(json.dumps(uvloop.run(run())))


if __name__ == "__main__":
    main()
