"""Measure how long it takes until things go on after a fault, each fault by itself."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import uvloop

from . import messages, stacks, valkey
from .bench import Bench, tell
from .callers import answered
from .follower import AT_ONCE, Follower
from .messages import FIRST_NUMBER, Target
from .processes import Children, Cores, free_port
from .ticks import due
from .wire import Connection, Lost, fetch, fetch_json, open_session, until

LIMIT = 20.0
"""Seconds after which a fault counts as not survived."""
START = 30.0
AWAY = 0.05
"""Seconds that a client stays away, so that there is something to miss."""
BUSY = 200.0
"""Events per second of most streams: what is measured is exact to 5 ms."""
CALM = 4.0
"""Events per second of a stream whose newest event is on the tape when the fault strikes."""
STORES = ("sqlite", "redis")


@dataclass
class Outcome:
    """What came of one fault at one store, over all repetitions."""

    seconds: list[float] = field(default_factory=list)
    attempts: int = 0
    """The most that a client needed."""
    wrong: int = 0
    """Events lost, twice or out of order."""
    failed: list[str] = field(default_factory=list)


class Replica:
    """One `shadowcat serve`, which is started again on the same port."""

    def __init__(self, bench: Bench, name: str, store: str) -> None:
        self.target = Target("127.0.0.1", free_port())
        self._bench = bench
        self._name = name
        command = stacks.shadowcat("window", store, name).command
        assert command
        upstream = f"http://127.0.0.1:{bench.stub_port}/mcp"
        self._command = command(upstream, self.target.port, bench.children.directory)
        self.start()

    def start(self) -> None:
        self.process = self._bench.children.start(self._name, self._command, None)

    def kill(self) -> None:
        self._bench.children.stop(self.process.pid)

    async def until_ready(self) -> None:
        """Be up: start it where it is not.

        Raises:
            RuntimeError: it does not become ready.
        """
        if self.process.returncode is None and self.process.poll() is not None:
            self.kill()
        if self.process.returncode is not None:
            self.start()
        if not await until(self._is_ready, START, 0.02):
            log = self._bench.children.log(self._name).read_text(errors="replace")
            raise RuntimeError(f"a replica did not become ready:\n{log[-2000:]}")

    async def _is_ready(self) -> bool:
        try:
            return bool(await fetch(self.target.port, "/readyz"))
        except OSError:
            return False

    async def until_gone(self) -> None:
        async def gone() -> bool:
            return self.process.poll() is not None

        await until(gone, LIMIT)
        self.kill()


class Rig:
    """A stub, a store, and two replicas in front of it, one of which is the next to be struck."""

    def __init__(self, children: Children, store: str) -> None:
        self.bench = Bench(children, Cores(None, None, None))
        self.directory = children.directory
        self.valkey: subprocess.Popen[bytes] | None = None
        self.valkey_port = free_port()
        url = f"sqlite:///{self.directory}/shared.db"
        if store == "redis":
            (self.directory / "valkey").mkdir()
            self.start_valkey()
            url = f"redis://127.0.0.1:{self.valkey_port}"
        self.owner, self.other = (Replica(self.bench, name, url) for name in ("one", "another"))

    def start_valkey(self) -> None:
        program = valkey.find()
        assert program, valkey.ADVICE
        command = valkey.command(program, self.valkey_port, self.directory / "valkey")
        self.valkey = self.bench.children.start_server("valkey", command, None, self.valkey_port)

    async def restart_valkey(self) -> None:
        """End it with its data saved, and start it again."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.valkey_port)
        writer.write(b"SHUTDOWN SAVE\r\n")
        writer.close()
        assert self.valkey
        self.valkey.wait(LIMIT)
        self.bench.children.stop(self.valkey.pid)
        self.start_valkey()

    async def ready(self) -> None:
        for each in (self.owner, self.other):
            await each.until_ready()

    @asynccontextmanager
    async def following(self, outcome: Outcome, rate: float = BUSY) -> AsyncIterator[Follower]:
        """A client whose stream the owner reads, some time after it began."""
        opener = await Connection.open(self.owner.target)
        session = await open_session(opener, self.owner.target)
        opener.abort()
        follower = Follower(self.owner.target, session, rate)
        follower.start()
        try:
            await follower.event_after(0.0)
            # At no moment of its own of what the replicas do now and then: owners' records, writes.
            await asyncio.sleep(random.uniform(0.3, 0.7))
            if rate == CALM:
                await follower.event_after(monotonic())
                await asyncio.sleep(random.uniform(0.1, 0.2))  # `record_window` is 0.05
            follower.attempts = 0
            yield follower
            outcome.wrong += follower.wrong
            outcome.attempts = max(outcome.attempts, follower.attempts)
        finally:
            await follower.stop()
            await self._end(session)

    async def _end(self, session: str) -> None:
        """Let nothing of it be left that takes time from the next one."""
        for each in (self.owner, self.other):
            try:
                connection = await Connection.open(each.target)
            except OSError:
                continue
            try:
                await asyncio.wait_for(connection.send(messages.delete(each.target, session)), 5)
                return
            except (Lost, TimeoutError):
                continue
            finally:
                connection.abort()


Strike = Callable[[Rig, Outcome], Awaitable[float]]


async def client_cut(rig: Rig, outcome: Outcome) -> float:
    async with rig.following(outcome) as follower:
        seen, now, follower.away = due(follower.last_id), monotonic(), AWAY
        follower.cut()
        return await follower.event_after(seen, now) - follower.returned


async def owner_killed(rig: Rig, outcome: Outcome, rate: float = CALM) -> float:
    async with rig.following(outcome, rate) as follower:
        follower.target, now = rig.other.target, monotonic()
        rig.owner.kill()
        return await follower.event_after(now, now) - now


async def busy_owner_killed(rig: Rig, outcome: Outcome) -> float:
    return await owner_killed(rig, outcome, BUSY)


async def owner_drained(rig: Rig, outcome: Outcome) -> float:
    async with rig.following(outcome) as follower:
        follower.target, now = rig.other.target, monotonic()
        rig.owner.process.terminate()
        took = await follower.event_after(now, now) - now
    await rig.owner.until_gone()
    return took


async def proxy_restarted(rig: Rig, outcome: Outcome) -> float:
    async with rig.following(outcome) as follower:
        now = monotonic()
        rig.owner.kill()
        rig.owner.start()
        return await follower.event_after(now, now) - now


async def upstream_cut(rig: Rig, outcome: Outcome) -> float:
    async with rig.following(outcome) as follower:
        now = float((await fetch_json(rig.bench.stub_port, "/_cut"))["at"])
        return await follower.event_after(now) - now


async def upstream_restarted(rig: Rig, outcome: Outcome) -> float:
    """Without the time that the server takes to start: it is back at once, and knows no session."""
    connection = await Connection.open(rig.owner.target)
    session = await open_session(connection, rig.owner.target)
    template = messages.call(rig.owner.target, "echo", session)
    try:
        await answered(connection, FIRST_NUMBER, template.fill(FIRST_NUMBER))
        await asyncio.sleep(random.uniform(0.0, 0.2))
        now = float((await fetch_json(rig.bench.stub_port, "/_restart"))["at"])
        number = FIRST_NUMBER + 1
        while (came := await answered(connection, number, template.fill(number))) != "right":
            tell(f"call {number - FIRST_NUMBER} after the restart: {came}")
            number += 1
            await asyncio.sleep(AT_ONCE)
            if connection.transport.is_closing():
                connection = await Connection.open(rig.owner.target)
        took = monotonic() - now
        outcome.attempts = max(outcome.attempts, number - FIRST_NUMBER)
        await connection.send(messages.delete(rig.owner.target, session))
    finally:
        connection.abort()
    return took


async def store_restarted(rig: Rig, outcome: Outcome) -> float:
    """With the time that the store takes to end and start; the client comes back meanwhile."""
    async with rig.following(outcome) as follower:
        seen, now = due(follower.last_id), monotonic()
        follower.cut()
        await rig.restart_valkey()
        return await follower.event_after(seen, now) - now


@dataclass(frozen=True)
class Fault:
    """One kind."""

    name: str
    title: str
    strike: Strike
    stores: tuple[str, ...] = STORES


FAULTS = (
    Fault("client-cut", "client cut → first missed event, from its coming back", client_cut),
    Fault("owner-killed", "owner killed (`kill -9`) → stream live on the other replica", owner_killed),
    Fault("busy-killed", "the same, the newest events not yet on the tape", busy_owner_killed),
    Fault("owner-drained", "owner drained (SIGTERM) → stream live on the other replica", owner_drained),
    Fault("proxy-restarted", "proxy killed and started again → stream live on it", proxy_restarted),
    Fault("upstream-cut", "upstream connection cut → next event", upstream_cut),
    Fault("upstream-restarted", "upstream forgets the session → next answer", upstream_restarted),
    Fault("store-restarted", "store restarted → first missed event", store_restarted, ("redis",)),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    count: int
    faults: tuple[Fault, ...]
    stores: tuple[str, ...]


Found = dict[tuple[str, str], Outcome]
"""By fault and store."""


def run(plan: Plan) -> Found:
    """Measure the plan, a store after the other."""
    found: Found = {}
    for store in plan.stores:
        if store == "redis" and not valkey.find():
            tell(f"redis: {valkey.ADVICE}")
            continue
        with Children() as children:
            uvloop.run(_strike_all(plan, Rig(children, store), store, found))
    return found


async def _strike_all(plan: Plan, rig: Rig, store: str, found: Found) -> None:
    for fault in plan.faults:
        if store in fault.stores:
            outcome = found[fault.name, store] = Outcome()
            for number in range(plan.count):
                await rig.ready()
                await _strike(fault, rig, outcome)
                rig.owner, rig.other = rig.other, rig.owner
                tell(f"{store:6} {fault.name:18} {number + 1}/{plan.count} {_last(outcome)}")


async def _strike(fault: Fault, rig: Rig, outcome: Outcome) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            outcome.seconds.append(await fault.strike(rig, outcome))
    except (OSError, TimeoutError, RuntimeError, subprocess.SubprocessError) as error:
        outcome.failed.append(repr(error))


def _last(outcome: Outcome) -> str:
    return f"{1000 * outcome.seconds[-1]:,.0f} ms" if outcome.seconds else str(outcome.failed[-1:])
