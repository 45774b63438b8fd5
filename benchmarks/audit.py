"""Check what the proxy promises: one upstream request per client request, backpressure, nothing left open."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import uvloop

from . import messages
from .bench import Bench, tell
from .callers import Scenario, gives_up, leaves_after_headers, leaves_at_once, play
from .messages import FIRST_NUMBER, Target
from .processes import Children, Cores, open_files, queued_bytes, rss_bytes
from .report import machine, today
from .stacks import Stack, with_settings
from .wire import Connection, fetch, fetch_json, open_session, until

MIB = 2**20
STALL = 5.0
"""Seconds that the stalled client is watched."""
STANDS_WITHIN = 20
"""Seconds within which its stream stands still, or never does."""
HELD_LIMIT = MIB
"""Bytes of a stalled stream that the proxy may keep to itself."""
TAPE_LIMIT = 8 * MIB
"""Resident memory that a stream may cost until it stalls: a tape in memory keeps some of what has passed."""
FLAT_LIMIT = MIB
"""Resident memory that it may cost from then on."""
FILES_LIMIT = 16
"""File descriptors that may be more after the cycles than before: idle upstream connections."""
FAR_TOO_MUCH = 256 * MIB
CYCLES = 200
ADOPT = 1.0
RECEIVE_BUFFER = 64 * 1024
LIMIT = 600.0
"""Seconds that one check may take."""

Cycle = Callable[[Connection, Target, str], Awaitable[None]]
"""Begins a stream in the session and leaves it."""


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    name: str
    passed: bool
    figures: str

    @property
    def verdict(self) -> str:
        return "PASS" if self.passed else "**FAIL**"


class Audited:
    """The proxy under audit: its clients' side, its upstream's side, and what it says of itself."""

    def __init__(self, bench: Bench, stack: Stack, settle: float) -> None:
        self.target = Target("127.0.0.1", bench.ports[stack.name])
        self.stub = bench.stub_port
        self.pid = bench.pids.get(stack.name, bench.stub.pid)
        self.counts_itself = stack.metrics
        self.settle = settle

    async def count(self) -> dict[str, Any]:
        return await fetch_json(self.stub, "/_count")

    async def open_streams(self) -> int:
        """By the stub's count or the proxy's own, whichever is more."""
        own = (await self.metrics())["shadowcat_open_streams"]
        return max(own, int((await self.count())["open_streams"]))

    async def taken(self) -> int:
        """Bytes of the flood that have left the stub's process."""
        return int((await fetch_json(self.stub, "/_written"))["taken"])

    async def is_quiet(self) -> bool:
        return not await self.open_streams()

    async def metrics(self) -> Counter[str]:
        """The proxy's counters and gauges by name and labels; nothing where it has none."""
        text = (await fetch(self.target.port, "/metrics")).decode() if self.counts_itself else ""
        return Counter(
            {name: int(float(value)) for name, value in re.findall(r"^(shadowcat_\S+) (\S+)$", text, re.M)}
        )


def scenarios(calls: int) -> list[Scenario]:
    few, some = max(16, calls // 50), max(16, calls // 20)
    right, cut = frozenset({"right"}), frozenset({"cut off", "error"})
    return [
        Scenario("JSON", "echo", calls, right),
        Scenario("one-event SSE", "echo_sse", calls, right),
        Scenario("JSON, no session (2026-07-28)", "echo", some, right, stateless=True),
        Scenario("one-event SSE, no session (2026-07-28)", "echo_sse", some, right, stateless=True),
        Scenario("slow answer (0.2 s)", "slow", few, right),
        Scenario("307", "redirect", some, frozenset({"307"})),
        Scenario("404 in a session", "missing", some, frozenset({"404"}), recovers=True),
        Scenario("404, no session (2026-07-28)", "missing", some, frozenset({"404"}), stateless=True),
        Scenario("500", "broken", some, frozenset({"500"})),
        Scenario("SSE answer breaks off", "half_sse", few, cut, recovers=True),
        Scenario("JSON answer breaks off", "half_json", few, cut),
        Scenario("client gives up waiting", "never", few, frozenset({"gave up"}), gives_up),
        Scenario("client leaves in mid-stream", "paced", few, frozenset({"left"}), leaves_after_headers),
        Scenario("client leaves at once", "echo", few, frozenset({"left"}), leaves_at_once, exactly=False),
    ]


async def exactly_one(audited: Audited, scenario: Scenario) -> Check:
    """Requests counted where they are sent against requests counted where they arrive."""
    count, metrics = await audited.count(), await audited.metrics()
    tally = await play(scenario, audited.target)

    async def arrived() -> bool:
        return bool((await audited.count())["requests"] - count["requests"] >= tally.sent)

    await until(arrived, 1.0)
    await asyncio.sleep(0.2)  # what should not come gets the time to come
    received = (await audited.count())["requests"] - count["requests"]
    said = await audited.metrics()
    said.subtract(metrics)
    recovered = said['shadowcat_upstream_requests_total{reason="recover"}']
    forwarded = received - recovered
    told = sum(value for name, value in said.items() if name.startswith("shadowcat_upstream_requests_total"))
    passed = (
        (forwarded == tally.sent if scenario.exactly else forwarded <= tally.sent)
        and (scenario.recovers or not recovered)
        and scenario.outcomes.issuperset(tally.outcomes)
        # The proxy counts before it sends: what a client leaves at that moment is told and not received.
        and (not audited.counts_itself or (told == received if scenario.exactly else told >= received))
    )
    figures = f"{forwarded / tally.sent:.4f} = {forwarded:,} upstream / {tally.sent:,} client requests"
    figures += f", {recovered:,} to recover" if recovered else ""
    figures += f"; calls: {', '.join(f'{many:,} {what}' for what, many in tally.outcomes.items())}"
    if audited.counts_itself:
        figures += f"; the proxy's own count {told:,}"
    return Check(f"one upstream request: {scenario.title}", passed, figures)


@asynccontextmanager
async def stalled_stream(audited: Audited) -> AsyncIterator[None]:
    """Have a stream without end that stands still, since its client does not read."""
    opener = await Connection.open(audited.target)
    session = await open_session(opener, audited.target)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        client.connect((audited.target.host, audited.target.port))
        client.sendall(messages.call(audited.target, "flood", session).fill(FIRST_NUMBER))
        before = -1
        for _ in range(STANDS_WITHIN):  # a busy machine takes its time to fill the buffers
            await asyncio.sleep(1.0)
            taken = await audited.taken()
            if taken == before or taken > FAR_TOO_MUCH:
                break
            before = taken
        yield
    opener.abort()


async def stalled_client(audited: Audited) -> Check:
    """A client that calls and does not read, while the upstream pushes without end.

    What the stub could write is in the sockets' buffers or in the proxy; the kernel says how much is in the
    buffers (`/proc/net/tcp`), the rest is the proxy's.
    """
    # What the first such stream costs is in part the process's, not its own: a store's caches, the room that
    # frames take which wait for a busy store. The second one has it already.
    async with stalled_stream(audited):
        pass
    await until(audited.is_quiet, audited.settle)
    before = rss_bytes(audited.pid)
    async with stalled_stream(audited):
        first, stalled = await audited.taken(), rss_bytes(audited.pid)
        await asyncio.sleep(STALL)
        taken, after = await audited.taken(), rss_bytes(audited.pid)
        queued = queued_bytes({audited.stub, audited.target.port})
    held, later = max(0, taken - queued), taken - first
    flat = stalled - before < TAPE_LIMIT and after - stalled < FLAT_LIMIT
    figures = (
        f"taken from the upstream {kib(taken)}, of which in socket buffers {kib(queued)}, "
        f"in the proxy {kib(held)} (limit {kib(HELD_LIMIT)}); {kib(later)} more in the last {STALL:g} s; "
        f"RSS {kib(before)} before, {kib(stalled)} when it stood, {kib(after)} after {STALL:g} s more"
    )
    passed = taken > 0 and held < HELD_LIMIT and later < HELD_LIMIT and flat
    return Check("backpressure: stalled client, endless SSE", passed, figures)


async def cycles(audited: Audited, title: str, cycle: Cycle) -> Check:
    """Connect, begin a stream, leave; and again. Then nothing may be open."""
    opener = await Connection.open(audited.target)
    session = await open_session(opener, audited.target)
    files, before = open_files(audited.pid), await audited.count()
    for _ in range(CYCLES):
        connection = await Connection.open(audited.target)
        await cycle(connection, audited.target, session)
        connection.abort()

    started = perf_counter()
    closed = await until(audited.is_quiet, audited.settle)
    waited, after = perf_counter() - started, await audited.count()
    opener.abort()
    begun = after["streams"] - before["streams"]
    more = open_files(audited.pid) - files
    figures = (
        f"{begun} streams begun, {after['open_streams']} open after {waited:.1f} s "
        f"({before['open_streams']} before the cycles); file descriptors {more:+d}"
    )
    # A proxy may hold one GET stream for all who come for it, one after the other.
    right = begun == CYCLES or (cycle is get and 0 < begun <= CYCLES)
    return Check(f"{CYCLES} cycles: {title}", closed and right and more <= FILES_LIMIT, figures)


async def post(connection: Connection, target: Target, session: str) -> None:
    request = messages.call(target, "paced", session).fill(FIRST_NUMBER)
    await leaves_after_headers(connection, FIRST_NUMBER, request)


async def stateless(connection: Connection, target: Target, session: str) -> None:
    await post(connection, target, "")


async def unanswered(connection: Connection, target: Target, session: str) -> None:
    connection.post(messages.call(target, "never", session).fill(FIRST_NUMBER))
    await asyncio.sleep(0.03)


async def get(connection: Connection, target: Target, session: str) -> None:
    await leaves_after_headers(connection, FIRST_NUMBER, messages.get(target, session, "paced"))


CYCLE_KINDS: dict[str, Cycle] = {
    "streaming POST": post,
    "streaming POST, no session (2026-07-28)": stateless,
    "POST without an answer": unanswered,
    "GET stream": get,
}


async def everything(audited: Audited, calls: int) -> list[Check]:
    """All checks, one after the other."""
    plan: list[tuple[str, Coroutine[Any, Any, Check]]] = [
        *((scenario.title, exactly_one(audited, scenario)) for scenario in scenarios(calls)),
        ("stalled client", stalled_client(audited)),
        *((title, cycles(audited, title, cycle)) for title, cycle in CYCLE_KINDS.items()),
    ]
    checks = []
    for title, work in plan:
        try:
            check = await asyncio.wait_for(work, LIMIT)
        except (OSError, TimeoutError, ExceptionGroup) as error:
            check = Check(title, False, f"came to no end: {error!r}")
        tell(f"{check.verdict}  {check.name}: {check.figures}")
        checks.append(check)
    return checks


def run(stack: Stack, cores: Cores, calls: int, settle: float) -> list[Check]:
    """Audit one proxy, on a stub of its own."""
    with Children() as children:
        bench = Bench(children, cores)
        bench.start(_impatient(stack))
        return uvloop.run(everything(Audited(bench, stack, settle), calls))


def _impatient(stack: Stack) -> Stack:
    """The stack with a Shadowcat that soon gives up what a client has left: after `ADOPT` seconds, not 60."""
    if stack.command is None or not stack.metrics:
        return stack
    command = stack.command
    return replace(stack, command=lambda *given: with_settings(command(*given), adopt_seconds=ADOPT))


def page(stack: Stack, checks: list[Check], cores: Cores) -> str:
    verdict = "PASS" if all(check.passed for check in checks) else "FAIL"
    rows = [f"| {each.verdict} | {each.name} | {each.figures} |" for each in checks]
    table = "\n".join(["| | check | figures |", "| --- | --- | --- |", *rows])
    return f"# {today()}: audit of {stack.label}: {verdict}\n\n{machine(cores)}\n\n{table}\n"


def kib(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"
