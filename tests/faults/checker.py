"""Judges a run: whatever a client was not told, was told twice, or could have been told and was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.ledger import Heard, Ledger
from tests.faults.log import event_id
from tests.faults.run import Run, untaped
from tests.faults.schedule import HELD, Call, Promise, Schedule

_UPSTREAMS = ("cut_upstream", "restart_upstream", "forget_session")
_PROXIES = ("kill_proxy", "drain_proxy")


@dataclass
class Verdict:
    """What is wrong with a run, and what it counts for."""

    problems: list[str] = field(default_factory=list)
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


def judge(run: Run, promise: Promise = HELD) -> Verdict:
    """Judge it by what is promised."""
    verdict = Verdict(list(run.problems))
    judged = _Judged(run, promise)
    for heard in run.ledger.heard.values():
        verdict.messages += len(heard.numbers)
        verdict.outcomes[heard.outcome] += 1
        verdict.duplicated += len(heard.numbers) - len(set(heard.numbers))
        missing, problems = judged.call(heard) if heard.call is not None else judged.get(heard)
        verdict.lost += missing
        verdict.problems += [f"{heard.name}: {each}" for each in problems]
    verdict.problems += judged.executions()
    verdict.problems += judged.ids()
    return verdict


class _Judged:
    def __init__(self, run: Run, promise: Promise) -> None:
        self._ledger: Ledger = run.ledger
        self._schedule: Schedule = run.schedule
        self._promise = promise
        self._run = run
        self._calls: dict[int, Call] = {call.id: call for call in run.schedule.calls}
        self._resumable = run.schedule.upstream == "resumable"

    def call(self, heard: Heard) -> tuple[int, list[str]]:
        """Return how many messages are missing, and what is wrong."""
        assert heard.call is not None
        wanted = list(range(1, self._calls[heard.call].events + 2))
        answered = heard.outcome == "answered"
        excused = not answered and self._is_excused(heard)
        missing = 0 if excused else len(set(wanted) - set(heard.numbers))
        problems = []
        if heard.numbers != (wanted if answered else wanted[: len(heard.numbers)]):
            problems.append(f"received {heard.numbers} of {len(wanted)}")
        if not answered and not excused:
            told = f", told {heard.refusals}" if heard.refusals else ""
            problems.append(f"it is {heard.outcome} after {len(heard.numbers)} messages{told}")
        if self._promise.unnoticed and self._is_noticed(heard):
            problems.append(f"the client had to connect anew {heard.breaks} times")
        if self._promise.adopts and heard.call in untaped(self._run):
            problems.append("its answer is not in the tape")
        return missing, problems

    def _is_excused(self, heard: Heard) -> bool:
        """Return whether nobody could have done better than this outcome."""
        assert heard.call is not None
        killed = bool(self._ledger.has_struck("kill_proxy"))
        drained = bool(self._ledger.has_struck("drain_proxy"))
        executed = bool(self._ledger.executed[heard.call])
        # Whether the upstream could be asked for the rest.
        known = self._has_upstream_id(heard) and not self._forgot
        # Whether it had to be asked, and had forgotten.
        polled = self._calls[heard.call].polls > 0
        forgotten = self._forgot and (drained or killed or polled)
        match heard.outcome:
            case "unknown":
                untouched = not heard.numbers and heard.cursor is None
                return untouched and bool(heard.cuts or killed or (drained and not executed))
            case "ambiguous":
                broken = heard.call in self._ledger.broken or killed or forgotten
                return not known and (broken or not executed)
            case "refused":
                # The newest of the tape is lost with a killed proxy, where it waits for the store.
                behind = self._schedule.record_window > 0 or self._ledger.has_struck(
                    "hang_store", "restart_store"
                )
                return not known and (forgotten or (killed and bool(behind)))
            case _:
                return False

    def _has_upstream_id(self, heard: Heard) -> bool:
        """Return whether the upstream would know what the client has."""
        theirs = {event_id(heard.name, number) for number in heard.numbers}
        return self._resumable and not theirs.isdisjoint(heard.ids)

    @property
    def _forgot(self) -> bool:
        return bool(self._ledger.has_struck("forget_session"))

    def _is_noticed(self, heard: Heard) -> bool:
        only_upstream = all(fault.kind in _UPSTREAMS for fault in self._ledger.struck)
        polled = heard.call is not None and self._calls[heard.call].polls
        return heard.breaks > 0 and only_upstream and self._resumable and not polled

    def get(self, heard: Heard) -> tuple[int, list[str]]:
        """Return how many notifications are missing without excuse, and what is wrong."""
        if self._promise.unnoticed and self._is_noticed(heard) and not self._forgot and heard.cursor:
            return 0, [f"the client had to connect anew {heard.breaks} times"]
        numbers = heard.numbers
        problems = []
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
            problems.append(f"received {numbers}")
        before = [0, *numbers]
        gaps = [(a, b) for a, b in zip(before, numbers, strict=False) if b - a > 1]
        if len(gaps) > self._excused_gaps(heard, bool(gaps) and gaps[0][0] == 0):
            problems.append(f"missing between {gaps}")
            return sum(b - a - 1 for a, b in gaps), problems
        if heard.outcome != "answered" or (not numbers and self._schedule.has_get):
            problems.append(f"it is {heard.outcome} after {numbers}")
        return 0, problems

    def _excused_gaps(self, heard: Heard, at_the_start: bool) -> int:
        """Return how often notifications may have been sent to nobody who could have kept them."""
        lost = self._ledger.lost_gets[heard.client] + self._ledger.has_struck(*_PROXIES, "forget_session")
        if not self._resumable or at_the_start:
            return heard.fresh + lost
        return heard.fresh + self._ledger.has_struck("forget_session")

    def executions(self) -> list[str]:
        """Return the calls that were executed more than once."""
        return [
            f"call {call}: executed {times} times"
            for call, times in self._ledger.executed.items()
            if times > 1
        ]

    def ids(self) -> Iterator[str]:
        """Every event has an id that is its own; the upstream's stay as they are."""
        seen: Counter[tuple[int, str]] = Counter()
        for heard in self._ledger.heard.values():
            pairs = list(zip(heard.numbers, heard.ids, strict=True))
            seen.update((heard.client, each) for each in heard.ids if each is not None)
            if not heard.is_event_stream:
                continue
            if self._resumable:
                changed = [pair for pair in pairs if pair[1] != event_id(heard.name, pair[0])]
                if changed:
                    yield f"{heard.name}: other event ids than the upstream's: {changed}"
            elif self._promise.event_ids and None in heard.ids:
                yield f"{heard.name}: no event ids: {[number for number, each in pairs if each is None]}"
        for (client, each), times in seen.items():
            if times > 1:
                yield f"client {client}: {each} is the id of {times} events"
