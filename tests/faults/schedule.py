"""What a run consists of: who calls what, and which faults strike when. Derived from a seed alone.

A moment is a number of ticks: one for each call that reaches the upstream, each message that the upstream
gives out, and each message that a client has received whole (see `ledger`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

FaultKind = Literal[
    "cut_client",  # the connection of one client's stream breaks
    "slow_client",  # one client stops reading for a while
    "kill_proxy",  # SIGKILL, then started again on the same port
    "drain_proxy",  # SIGTERM, then started again on the same port
    "cut_upstream",  # one connection from the proxy to the upstream breaks
    "restart_upstream",  # all of them do, and the port is closed for a moment; nothing is forgotten
    "forget_session",  # the upstream knows no session of before any more; what is under way goes on
    "restart_store",  # Redis: ends and starts with its data; SQLite: locked by somebody else
    "hang_store",  # Redis: answers nothing for a moment; SQLite: as before
]
UpstreamKind = Literal[
    "resumable",  # gives event ids and takes them up again by GET and Last-Event-ID
    "plain",  # gives no ids, and answers GET with 405 or with a stream that cannot be taken up again
    "json",  # answers with JSON alone
]
StoreKind = Literal["sqlite", "redis"]


@dataclass(frozen=True)
class Promise:
    """What a version of the product holds: only that is scheduled and demanded."""

    faults: Mapping[UpstreamKind, Sequence[FaultKind]]
    event_ids: bool
    """Every event has an id: the upstream's own, or one of the proxy's."""
    unnoticed: bool
    """An upstream's trouble is mended without the client noticing, where the upstream can resume."""
    adopts: bool
    """What a client that left did not wait for is read on into the tape."""


_STORES: Final[tuple[FaultKind, ...]] = ("restart_store", "hang_store")
_PROXIES: Final[tuple[FaultKind, ...]] = ("kill_proxy", "drain_proxy")
_LINES: Final[tuple[FaultKind, ...]] = ("cut_upstream", "restart_upstream")

BEFORE_SURVIVAL: Final = Promise(
    {
        "resumable": ("cut_client", "slow_client", *_PROXIES, *_STORES),
        "plain": ("slow_client", *_STORES),
        "json": ("cut_client", "slow_client", *_PROXIES, *_LINES, *_STORES),
    },
    event_ids=False,
    unnoticed=False,
    adopts=False,
)
"""Without streams that survive: what the upstream resumes by itself, and calls that are one answer."""

WHOLE: Final = Promise(
    {kind: get_args(FaultKind) for kind in get_args(UpstreamKind)},
    event_ids=True,
    unnoticed=True,
    adopts=True,
)
"""All that is wanted."""

HELD: Final = WHOLE
"""What this version holds, and what `make test` demands: change it to `WHOLE` when streams survive."""

_ENDLESS: Final = 1000


@dataclass(frozen=True)
class Call:
    """One tools/call."""

    id: int
    """Used once in a schedule: calls are counted by it."""
    events: int
    """Progress notifications before the result; without any the answer is JSON."""
    ahead: int
    """How many messages the upstream gives out before the client has received the first of them."""
    padding: int
    """Bytes that each message is longer."""
    polls: int = 0
    """After how many messages the upstream ends a connection in good order, for the client to come back."""


@dataclass(frozen=True)
class Caller:
    """One client, in a session of its own."""

    lanes: tuple[tuple[Call, ...], ...]
    """Calls one after the other, beside those of the other lanes."""
    notifications: int
    """How many it listens for on a GET stream; 0: it opens none."""


@dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: FaultKind
    at: int
    """The tick at which it strikes."""
    target: int
    """Whom it strikes, modulo those there are."""
    lasts: int
    """Ticks until it is over, for what lasts."""


@dataclass(frozen=True)
class Schedule:
    """All of one run."""

    seed: int
    store: StoreKind
    upstream: UpstreamKind
    primes: bool
    """Whether a resumable upstream begins its streams with an id and no data."""
    has_get: bool
    """Whether the upstream offers a GET stream."""
    replicas: int
    record_window: float
    session_cache: float
    callers: tuple[Caller, ...]
    faults: tuple[Fault, ...]

    @property
    def calls(self) -> list[Call]:
        """Return the calls of all clients."""
        return [call for caller in self.callers for lane in caller.lanes for call in lane]

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.store}, {self.replicas} replica(s), "
            f"record_window {self.record_window:g}, session_cache {self.session_cache:g}, "
            f"{self.upstream} upstream{', primes' * self.primes}{', GET' * self.has_get}"
        ]
        for number, caller in enumerate(self.callers):
            lanes = " | ".join(
                " ".join(
                    f"{each.id}:{each.events or 'json'}{f'/{each.polls}' * bool(each.polls)}" for each in lane
                )
                for lane in caller.lanes
            )
            lines.append(f"  client {number}: {lanes} | listens for {caller.notifications}")
        lines += [f"  tick {each.at}: {each.kind} {each.target} for {each.lasts}" for each in self.faults]
        return "\n".join(lines)


def schedule(seed: int, promise: Promise = HELD) -> Schedule:
    """Return the schedule of this seed, of what is promised."""
    choose = random.Random(f"shadowcat faults {seed}")
    upstream: UpstreamKind = choose.choice([kind for kind in promise.faults for _ in range(_WEIGHTS[kind])])
    has_get = upstream == "resumable" or (upstream == "plain" and choose.random() < 0.6)
    ids = iter(range(1, _ENDLESS))
    callers = tuple(_caller(choose, ids, upstream, has_get) for _ in range(choose.choice((1, 1, 2))))
    return Schedule(
        seed=seed,
        store=choose.choice(get_args(StoreKind)),
        upstream=upstream,
        primes=upstream == "resumable" and choose.random() < 0.5,
        has_get=has_get,
        replicas=choose.choice((1, 2)),
        record_window=choose.choice((0.05, 0.0)),
        session_cache=choose.choice((1.0, 0.0)),
        callers=callers,
        faults=_faults(choose, promise.faults[upstream], _ticks(callers)),
    )


_WEIGHTS: Final[Mapping[UpstreamKind, int]] = {"resumable": 3, "plain": 3, "json": 1}


def _caller(choose: random.Random, ids: Iterator[int], upstream: UpstreamKind, has_get: bool) -> Caller:
    lanes = tuple(
        tuple(_call(choose, upstream, next(ids)) for _ in range(choose.randint(1, 3)))
        for _ in range(choose.randint(1, 3))
    )
    return Caller(lanes, choose.choice((0, 3, 8)) if has_get else choose.choice((0, 0, 2)))


def _call(choose: random.Random, upstream: UpstreamKind, number: int) -> Call:
    events = 0 if upstream == "json" or choose.random() < 0.2 else choose.randint(1, 12)
    return Call(
        number,
        events,
        ahead=choose.choice((1, 3, _ENDLESS)),
        padding=choose.choice((0, 0, 0, 40_000)),
        polls=choose.choice((0, 0, 0, 2)) if upstream == "resumable" else 0,
    )


def _ticks(callers: Sequence[Caller]) -> int:
    calls = [call for caller in callers for lane in caller.lanes for call in lane]
    return sum(1 + 2 * (call.events + 1) for call in calls) + sum(2 * each.notifications for each in callers)


def _faults(choose: random.Random, kinds: Sequence[FaultKind], ticks: int) -> tuple[Fault, ...]:
    if not kinds or choose.random() < 0.05:
        return ()
    found = [_fault(choose, choose.choice(kinds), ticks) for _ in range(choose.randint(1, 4))]
    return tuple(sorted(found, key=lambda each: each.at))


def _fault(choose: random.Random, kind: FaultKind, ticks: int) -> Fault:
    # A store's trouble matters only where requests come in meanwhile.
    lasts = choose.choice((3, 30, _ENDLESS) if kind in _STORES else (1, 3, 6))
    return Fault(kind, choose.randint(1, ticks), choose.randrange(_ENDLESS), lasts)
