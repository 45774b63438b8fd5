"""One run of a schedule: clients, proxies, store and upstream together, and what is left afterwards."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

import anyio
import anyio.abc
import anyio.lowlevel
import httpx2

from shadowcat_stores import Frame, store_from_url
from tests.faults.client import Client
from tests.faults.ledger import Heard, Ledger
from tests.faults.parts import Replicas, Store, replicas_of, store_of
from tests.faults.schedule import HELD, Fault, Promise, Schedule
from tests.faults.upstream import NumberingUpstream, numbering_upstream
from tests.support.plain import plain_http
from tests.support.serve_command import Served

DEADLINE = 60.0
"""Seconds that a run may take. Only one that fails ever gets there."""

WORK = 20.0
"""Seconds of it in which the clients finish."""

LEAVING = 10.0
"""Seconds in which everything must be gone once the clients are."""

_SLOW = 0.2
"""Seconds after which a slow client reads on, though nothing else happens."""

UpstreamOf = Callable[[Schedule, Ledger], AbstractAsyncContextManager[NumberingUpstream]]


@dataclass
class Run:
    """What has happened, and what is left."""

    schedule: Schedule
    ledger: Ledger
    tapes: dict[int, list[Frame]] = field(default_factory=dict)
    """What is recorded, by the number of the client."""
    problems: list[str] = field(default_factory=list)
    """What went wrong around the streams; the streams are judged by the checker."""
    logs: list[str] = field(default_factory=list)
    """What the proxies have printed, life by life."""


class Strikes:
    """Does what the faults say, at once where it can be done at once."""

    def __init__(
        self,
        ledger: Ledger,
        clients: list[Client],
        replicas: Replicas,
        upstream: NumberingUpstream,
        store: Store,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._ledger = ledger
        self._clients = clients
        self._replicas = replicas
        self._upstream = upstream
        self._store = store
        self._tasks = tasks
        ledger.strike = self.strike

    def strike(self, fault: Fault) -> bool:
        """Let it happen; say whether there was anything to strike."""
        match fault.kind:
            case "cut_client":
                return self._cut_client(fault)
            case "slow_client":
                return self._slow_client(fault)
            case "kill_proxy" | "drain_proxy":
                return self._end_proxy(fault)
            case "cut_upstream":
                name = self._upstream.cut(fault.target)
                self._mark(fault, [each for each in self._open if each.name == name])
                return name is not None
            case "restart_upstream":
                return self._restart_upstream(fault)
            case "forget_session":
                self._upstream.forget()
            case "restart_store" | "hang_store":
                self._mark(fault, self._open)
                self._tasks.start_soon(self._store.trouble, fault.kind, self._later(fault), self._ledger)
        return True

    def _end_proxy(self, fault: Fault) -> bool:
        number = self._replicas.index(fault.target)
        kill = fault.kind == "kill_proxy"
        if not self._replicas.all[number].send(signal.SIGKILL if kill else signal.SIGTERM):
            return False
        self._mark(fault, [each for each in self._open if each.replica == number])
        if not kill:
            self._upstream.hurry()
        return True

    def _restart_upstream(self, fault: Fault) -> bool:
        if not self._upstream.is_listening:
            return False
        self._mark(fault, self._open)
        self._upstream.close()
        self._tasks.start_soon(self._upstream.listen)
        return True

    @property
    def _open(self) -> list[Heard]:
        return [each for each in self._ledger.heard.values() if not each.over]

    def _mark(self, fault: Fault, struck: list[Heard]) -> None:
        now = anyio.current_time()
        for each in struck:
            each.waits_since.append((fault.kind, now))

    def _cut_client(self, fault: Fault) -> bool:
        lines = [(name, line) for client in self._clients for name, line in client.lines.items()]
        if not lines:
            return False
        name, line = lines[fault.target % len(lines)]
        self._ledger.note(f"the client's connection of {name} is cut")
        self._mark(fault, [self._ledger.heard[name]])
        line.cut()
        return True

    def _slow_client(self, fault: Fault) -> bool:
        responses = [line.response for client in self._clients for line in client.lines.values()]
        reading = [each for each in responses if each is not None]
        if not reading:
            return False
        chosen = reading[fault.target % len(reading)]
        chosen.may_read.clear()
        self._tasks.start_soon(self._until_later, fault, chosen.may_read.set)
        return True

    async def _until_later(self, fault: Fault, act: Callable[[], object]) -> None:
        with anyio.move_on_after(_SLOW):
            await self._ledger.until(self._later(fault))
        act()

    def _later(self, fault: Fault) -> Callable[[], bool]:
        end = self._ledger.ticks + fault.lasts
        return lambda: self._ledger.ticks >= end


async def run(
    schedule: Schedule, promise: Promise = HELD, upstream_of: UpstreamOf = numbering_upstream
) -> Run:
    """Run it."""
    ledger = Ledger(schedule)
    done = Run(schedule, ledger)
    try:
        with anyio.fail_after(DEADLINE):
            async with AsyncExitStack() as stack:
                upstream = await stack.enter_async_context(upstream_of(schedule, ledger))
                store = await stack.enter_async_context(store_of(schedule))
                await _with_proxies(done, upstream, store, promise)
                await _is_left(done, upstream)
    except TimeoutError:
        done.problems.append(f"it did not end within {DEADLINE:g} s")
    except Exception:  # noqa: BLE001 - one run that breaks must not hide the others
        done.problems.append(f"it broke: {traceback.format_exc()}")
    return done


async def _with_proxies(done: Run, upstream: NumberingUpstream, store: Store, promise: Promise) -> None:
    async with replicas_of(done.schedule, upstream.url, store, done.logs) as replicas:
        clients = [
            Client(number, plan, replicas, done.ledger) for number, plan in enumerate(done.schedule.callers)
        ]
        for client in clients:
            await client.begin()
        async with anyio.create_task_group() as striking:
            Strikes(done.ledger, clients, replicas, upstream, store, striking)
            with anyio.move_on_after(WORK) as working:
                async with anyio.create_task_group() as tasks:
                    for client in clients:
                        tasks.start_soon(client.work)
            done.ledger.strike = lambda fault: False
            if working.cancelled_caught:
                done.problems.append(f"the clients did not finish within {WORK:g} s")
                done.ledger.give_up()
        done.ledger.note("all clients have finished")
        await _gone(done, replicas, "recorder_waiting_frames")
        await _read_tapes(done, store, clients, promise)
        for client in clients:
            await client.end()
        await _gone(done, replicas, "open_streams")
        await _is_exactly_one(done, replicas)
    done.problems += replicas.problems


async def _read_tapes(done: Run, store: Store, clients: list[Client], promise: Promise) -> None:
    """Read them; wait for the answers that are read on into them, where that is promised."""
    async with store_from_url(store.url) as opened:
        with anyio.move_on_after(LEAVING) as waiting:
            while not waiting.cancel_called:
                for client in clients:
                    done.tapes[client.number] = await opened.get_frames(client.session_id)
                if not promise.adopts or not untaped(done):
                    break


def untaped(done: Run) -> list[int]:
    """Return the calls that a client was left without an answer to, and whose answer nobody kept.

    It must be kept where nothing but the client's connection broke.
    """
    if done.ledger.has_struck("kill_proxy", "drain_proxy", "restart_store", "hang_store"):
        return []
    taped = {
        frame.envelope.id
        for tape in done.tapes.values()
        for frame in tape
        if frame.envelope.kind == "response"
    }
    streamed = {call.id for call in done.schedule.calls if call.events}
    return [
        heard.call
        for heard in done.ledger.heard.values()
        if heard.outcome == "unknown" and heard.call in streamed and done.ledger.executed[heard.call]
        if heard.call not in done.ledger.broken and heard.call not in taped
    ]


async def _is_exactly_one(done: Run, replicas: Replicas) -> None:
    """Note a replica that sent on more than it got."""
    async with plain_http() as http:
        for served in (each.served for each in replicas.all):
            assert served is not None
            forwarded = await served.metric(http, 'upstream_requests_total{reason="forward"}')
            received = await served.metric(http, "client_requests_total")
            if forwarded > received:
                done.problems.append(f"{forwarded} requests sent on of {received}")


async def _gone(done: Run, replicas: Replicas, gauge: str) -> None:
    """Wait until nothing of it is left in any replica that lives."""
    async with plain_http() as http:
        for replica in replicas.all:
            await replica.is_up.wait()
            assert replica.served is not None
            left = await _left(replica.served, http, gauge)
            if left:
                done.problems.append(f"{gauge} is {left} after all clients have gone")


async def _left(served: Served, http: httpx2.AsyncClient, gauge: str) -> int:
    left = -1
    with anyio.move_on_after(LEAVING):
        while left := await served.metric(http, gauge):
            await anyio.lowlevel.checkpoint()
    return left


async def _is_left(done: Run, upstream: NumberingUpstream) -> None:
    """Note the connections to the upstream that outlive the proxies."""
    with anyio.move_on_after(LEAVING):
        while upstream.scripted.connections:
            await anyio.lowlevel.checkpoint()
    if left := upstream.scripted.connections:
        done.problems.append(f"{left} connections to the upstream outlive the proxies")
