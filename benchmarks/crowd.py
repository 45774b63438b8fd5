"""Thousands of streams on which nothing happens: what each costs, and what it costs the calls beside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from time import monotonic

import uvloop

from . import messages
from .bench import Bench, Case, Sample, tell
from .messages import FIRST_NUMBER, Target
from .processes import cpu_seconds, rss_bytes
from .stacks import Stack
from .wire import PATIENCE, Connection, fetch_json, open_session

AT_A_TIME = 50
SETTLE = 1.0
"""Seconds after which what was opened or left has found its place."""
IDLE = 3.0
"""Seconds in which the CPU time of all these streams is taken."""
LIMIT = 180.0
"""Seconds that it may take to open them."""
RARELY = 1e-6
"""Events per second after the first."""
CALLS = Case("json-1", "", "echo", 1)
BESIDE = 1000


@dataclass
class Crowd:
    """Clients with a session and a stream each, which has brought one event."""

    target: Target
    sessions: list[str] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    opened: int = 0

    async def begin_sessions(self, size: int) -> None:
        """So many: not what is measured."""
        openers = [await Connection.open(self.target) for _ in range(16)]

        async def some(opener: Connection) -> None:
            while len(self.sessions) < size:
                self.sessions.append("")  # takes the place before anybody else does
                number = len(self.sessions) - 1
                self.sessions[number] = await open_session(opener, self.target)
            opener.abort()

        await asyncio.gather(*(some(opener) for opener in openers))

    async def grow(self, size: int, leaves: bool = False) -> None:
        """Open streams until there are so many; leave them at once where the proxy is to hold them alone."""
        while self.opened < size:
            some = self.sessions[self.opened : min(size, self.opened + AT_A_TIME)]
            self.connections += await asyncio.gather(*(self._open(session) for session in some))
            self.opened += len(some)
            if leaves:
                self.leave()

    async def _open(self, session: str) -> Connection:
        connection = await Connection.open(self.target)
        connection.post(messages.call(self.target, "ticks", session, rate=RARELY).fill(FIRST_NUMBER))
        await asyncio.wait_for(connection.begun.wait(), PATIENCE)
        return connection

    def leave(self) -> None:
        for connection in self.connections:
            connection.abort()
        self.connections.clear()


Held = dict[int, dict[str, float]]
"""By number of streams: resident bytes of each, CPU of all as part of a core, and how many were not held."""


def memory(bench: Bench, stack: Stack, sizes: tuple[int, ...], leaves: bool, found: Held) -> None:
    """Fill `found`, as far as that goes.

    Raises:
        TimeoutError: it took too long.
    """
    stack = replace(stack, name=f"{stack.name}-{'adopted' if leaves else 'attached'}")
    bench.start(stack)
    try:
        bench.measure(stack, CALLS, 0.3, 0)
        uvloop.run(_memory(bench, stack, sizes, leaves, found))
    finally:
        bench.stop(stack)


async def _memory(bench: Bench, stack: Stack, sizes: tuple[int, ...], leaves: bool, found: Held) -> None:
    pid, began = bench.pids[stack.name], monotonic()
    before = (await fetch_json(bench.stub_port, "/_count"))["open_streams"]
    crowd = Crowd(Target("127.0.0.1", bench.ports[stack.name]))
    await crowd.begin_sessions(max(sizes))
    await crowd.grow(1, leaves)  # what the first one costs is no stream's
    await asyncio.sleep(SETTLE)
    base = rss_bytes(pid)
    for size in sizes:
        async with asyncio.timeout(LIMIT):
            await crowd.grow(size, leaves)
        await asyncio.sleep(SETTLE)
        rss, used = rss_bytes(pid), cpu_seconds(pid)
        await asyncio.sleep(IDLE)
        used = cpu_seconds(pid) - used
        held = (await fetch_json(bench.stub_port, "/_count"))["open_streams"] - before
        found[size] = {"bytes": (rss - base) / (size - 1), "cpu": used / IDLE, "missing": size - held}
        each, took = found[size]["bytes"] / 1000, monotonic() - began
        tell(f"{stack.name:26} {size:6,} streams {each:6.1f} kB each after {took:.0f} s")
    crowd.leave()


Pair = tuple[Sample, Sample]
"""Without a crowd, and with one, right after each other."""


def calls(bench: Bench, stack: Stack, rounds: int, seconds: float) -> list[Pair]:
    """Calls to two proxies of the kind in turns; one of them has a crowd."""
    quiet, crowded = replace(stack, name=f"{stack.name}-quiet"), replace(stack, name=f"{stack.name}-crowded")
    for each in (quiet, crowded):
        bench.start(each)
        bench.measure(each, CALLS, 0.3, 0)
    try:
        return uvloop.run(_calls(bench, quiet, crowded, rounds, seconds))
    finally:
        bench.stop(quiet)
        bench.stop(crowded)


async def _calls(bench: Bench, quiet: Stack, crowded: Stack, rounds: int, seconds: float) -> list[Pair]:
    crowd = Crowd(Target("127.0.0.1", bench.ports[crowded.name]))
    await crowd.begin_sessions(BESIDE)
    await crowd.grow(BESIDE)
    await asyncio.sleep(SETTLE)
    found = []
    for _ in range(rounds):
        # The loop stands still meanwhile, and nobody misses it.
        pair = tuple(bench.measure(each, CALLS, seconds, 0.2) for each in (quiet, crowded))
        tell(
            f"{crowded.name:26} p50 {pair[0].p50:,.0f} µs alone, {pair[1].p50:,.0f} beside {BESIDE:,} streams"
        )
        found.append((pair[0], pair[1]))
    crowd.leave()
    return found
