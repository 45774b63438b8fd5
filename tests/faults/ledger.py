"""The book that clients, upstream and faults write into, and whose changes they wait for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio

from tests.faults.schedule import Fault, Schedule

Outcome = Literal[
    "open",  # the client still waits
    "answered",  # the final response is there; of a GET stream: all that was wanted
    "ambiguous",  # the proxy said that it cannot be known
    "refused",  # the proxy said that the stream cannot be taken up again
    "unknown",  # the connection broke before the client had a cursor: it cannot ask
    "silent",  # a stream ended as if it were complete, without its answer
]


@dataclass
class Heard:
    """What a client has received of one call, or of its GET stream."""

    name: str
    client: int
    call: int | None
    """The call's id; `None` for a GET stream."""
    numbers: list[int] = field(default_factory=list)
    """The upstream's numbers of the messages, in the order in which they came."""
    ids: list[str | None] = field(default_factory=list)
    """The event ids that they came with."""
    is_event_stream: bool = False
    outcome: Outcome = "open"
    cursor: str | None = None
    replica: int | None = None
    """Where its connection leads now."""
    breaks: int = 0
    """How often the client had to connect anew."""
    cuts: int = 0
    """How many of these were the client's own cuts."""
    fresh: int = 0
    """How often a GET stream was opened anew without a cursor."""
    begun: int = 0
    """How often a GET stream has begun without a cursor: what was given out before may never come."""
    refusals: list[str] = field(default_factory=list)
    """What the proxy said, where it was not the stream."""
    waits_since: list[tuple[str, float]] = field(default_factory=list)
    """The faults after which no message has come yet."""

    @property
    def last(self) -> int:
        """Return the highest number received."""
        return max(self.numbers, default=0)

    @property
    def over(self) -> bool:
        """Return whether the client waits no more."""
        return self.outcome != "open"


class Ledger:
    """All that happens in one run."""

    def __init__(self, schedule: Schedule) -> None:
        self.heard: dict[str, Heard] = {}
        self.executed: Counter[int] = Counter()
        """How often each call has reached the upstream."""
        self.broken: set[int] = set()
        """Calls whose upstream connection was cut before the end."""
        self.lost_gets: Counter[int] = Counter()
        """How often the upstream's side cut the GET stream of a client."""
        self.struck: list[Fault] = []
        self.recoveries: list[tuple[str, float]] = []
        """Seconds from a fault to the next message of a stream that it struck."""
        self.story: list[str] = []
        self.strike: Callable[[Fault], bool] = lambda fault: False
        """Lets a fault happen; says whether there was anything to strike."""
        self.ticks = 0
        self.is_given_up = False
        self._begun = time.monotonic()
        self._faults = list(schedule.faults)
        self._changed = anyio.Event()

    def begin(self, name: str, client: int, call: int | None) -> Heard:
        """Open the page of a call or of a GET stream."""
        self.heard[name] = Heard(name, client, call)
        return self.heard[name]

    def receive(self, heard: Heard, number: int, event_id: str | None) -> None:
        """Note that a client has a message whole."""
        heard.numbers.append(number)
        heard.ids.append(event_id)
        now = time.monotonic()
        self.recoveries += [(kind, now - since) for kind, since in heard.waits_since]
        heard.waits_since.clear()
        self.tick(f"{heard.name} has {number} ({event_id})")

    def finish(self, heard: Heard, outcome: Outcome) -> None:
        """Note how it ended for the client."""
        heard.outcome = outcome
        heard.replica = None
        self.note(f"{heard.name} is {outcome}")

    def tick(self, what: str) -> None:
        """Count a moment; what is due strikes before anything else happens."""
        self.ticks += 1
        self.note(what)
        while self._faults and self._faults[0].at <= self.ticks:
            fault = self._faults.pop(0)
            self.note(f"--- {fault.kind} {fault.target}")
            if self.strike(fault):
                self.struck.append(fault)

    def note(self, what: str) -> None:
        """Add to the story, and let those who wait look again."""
        self.story.append(f"{time.monotonic() - self._begun:7.3f} [{self.ticks}] {what}")
        self._changed.set()
        self._changed = anyio.Event()

    def give_up(self) -> None:
        """Let nobody wait for a client any more; what is open stays open in the book."""
        self.is_given_up = True
        self.note("the clients have given up")

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when it holds."""
        while not condition():
            await self._changed.wait()

    def has_struck(self, *kinds: str) -> int:
        """Return how many faults of these kinds there were."""
        return sum(fault.kind in kinds for fault in self.struck)
