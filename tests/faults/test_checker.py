"""What a client may miss, and what excuses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.faults.checker import judge
from tests.faults.ledger import Heard, Ledger, Outcome
from tests.faults.run import Run
from tests.faults.schedule import WHOLE, Call, Caller, Fault, FaultKind, Schedule, UpstreamKind

WINDOW = 0.05


def judged(
    upstream: UpstreamKind,
    outcome: Outcome,
    numbers: Sequence[int],
    *struck: FaultKind,
    window: float = 0.0,
    change: Callable[[Ledger, Heard], object] = lambda ledger, heard: None,
) -> list[str]:
    """Return what is said of a call of two events that ended like this."""
    faults = tuple(Fault(kind, 1, 0, 1) for kind in struck)
    callers = (Caller(((Call(1, 2, 1, 0),),), 0),)
    schedule = Schedule(0, "sqlite", upstream, False, True, 1, window, 1.0, callers, faults)
    ledger = Ledger(schedule)
    ledger.struck = list(faults)
    ledger.executed[1] = 1
    heard = ledger.begin("call 1", 0, 1)
    heard.numbers = list(numbers)
    heard.ids = [f"call-1/{number}" if upstream == "resumable" else f"s-{number}" for number in numbers]
    heard.is_event_stream = True
    heard.outcome = outcome
    heard.cursor = heard.ids[-1] if heard.ids else None
    change(ledger, heard)
    return judge(Run(schedule, ledger), WHOLE).problems


def broken(ledger: Ledger, heard: Heard) -> None:
    ledger.broken.add(1)


def cut(ledger: Ledger, heard: Heard) -> None:
    heard.cuts = 1
    ledger.executed.clear()  # so that no answer need be in the tape


@pytest.mark.parametrize("upstream", ["plain", "resumable"])
def test_all_messages_once_and_in_order(upstream: UpstreamKind) -> None:
    assert judged(upstream, "answered", [1, 2, 3]) == []
    assert judged(upstream, "answered", [1, 3])
    assert judged(upstream, "answered", [2, 1, 3])
    assert judged(upstream, "answered", [1, 2, 2, 3])


def test_ambiguous_is_excused_by_a_broken_connection_that_nobody_can_resume() -> None:
    assert judged("plain", "ambiguous", [1], "cut_upstream", change=broken) == []
    assert judged("plain", "ambiguous", [1], "kill_proxy") == []
    assert judged("plain", "ambiguous", [1], "cut_client")
    assert judged("plain", "ambiguous", [1], "drain_proxy")
    assert judged("resumable", "ambiguous", [], "cut_upstream", change=broken) == []
    assert judged("resumable", "ambiguous", [1], "cut_upstream", change=broken)
    assert judged("resumable", "ambiguous", [1], "kill_proxy")
    assert judged("resumable", "ambiguous", [1], "forget_session", "kill_proxy") == []


def test_refused_is_excused_where_the_tape_may_have_lost_the_cursor() -> None:
    assert judged("plain", "refused", [1], "kill_proxy", window=WINDOW) == []
    assert judged("plain", "refused", [1], "kill_proxy")
    assert judged("plain", "refused", [1], "cut_client", window=WINDOW)
    assert judged("resumable", "refused", [1], "kill_proxy", window=WINDOW)


def test_unknown_is_excused_for_a_client_that_was_cut_and_had_no_cursor() -> None:
    assert judged("plain", "unknown", [], "cut_client", change=cut) == []
    assert judged("plain", "unknown", [], "kill_proxy") == []
    assert judged("plain", "unknown", [1], "cut_client", change=cut)
    assert judged("plain", "unknown", [], "cut_upstream", change=broken)
    assert judged("plain", "silent", [1], "kill_proxy")


def test_an_answer_that_a_client_left_without_is_in_the_tape() -> None:
    def gone(ledger: Ledger, heard: Heard) -> None:
        heard.cuts = 1

    assert judged("plain", "unknown", [], "cut_client", change=gone) == [
        "call 1: its answer is not in the tape"
    ]


def test_an_upstream_that_resumes_costs_the_client_no_connection() -> None:
    def again(ledger: Ledger, heard: Heard) -> None:
        heard.breaks = 1

    noticed = ["call 1: the client had to connect anew 1 times"]
    assert judged("resumable", "answered", [1, 2, 3], "cut_upstream", change=again) == noticed
    assert judged("resumable", "answered", [1, 2, 3], "cut_client", change=again) == []


def test_each_event_has_an_id_of_its_own() -> None:
    def without(ledger: Ledger, heard: Heard) -> None:
        heard.ids = ["s-1", None, "s-1"]

    assert judged("plain", "answered", [1, 2, 3], change=without) == [
        "call 1: no event ids: [2]",
        "client 0: s-1 is the id of 2 events",
    ]
