"""The harness can fail: each kind of misbehaviour is reported, and nothing else is."""

from __future__ import annotations

import re
import signal

import anyio
import pytest

from tests.faults import run as running
from tests.faults import saboteurs
from tests.faults.checker import judge
from tests.faults.ledger import Ledger
from tests.faults.parts import replicas_of, store_of
from tests.faults.schedule import Call, Caller, Schedule, UpstreamKind
from tests.faults.upstream import NumberingUpstream, numbering_upstream
from tests.support.redis import until


def plain(upstream: UpstreamKind = "plain") -> Schedule:
    lanes = ((Call(1, 3, 9, 0), Call(2, 0, 9, 0)), (Call(3, 2, 9, 0),))
    callers = (Caller(lanes, 3),)
    return Schedule(0, "sqlite", upstream, False, True, 1, 0.05, 1.0, callers, ())


@pytest.mark.parametrize("upstream", ["plain", "resumable"])
async def test_without_sabotage_nothing_is_reported(upstream: UpstreamKind) -> None:
    done = await running.run(plain(upstream))
    verdict = judge(done)
    assert verdict.problems == []
    assert (verdict.messages, verdict.lost, verdict.duplicated) == (11, 0, 0)
    assert verdict.outcomes == {"answered": 4}
    assert done.ledger.executed == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("kind", "upstream", "reported"),
    [
        (saboteurs.Duplicates, "plain", r"call 1: received \[1, 2, 2, 3, 4\] of 4"),
        (saboteurs.Duplicates, "plain", r"get 0: received \[1, 2, 2, 3\]"),
        (saboteurs.Duplicates, "resumable", "call-1/2 is the id of 2 events"),
        (saboteurs.Drops, "plain", r"call 1: received \[1, 3, 4\] of 4"),
        (saboteurs.Drops, "plain", r"get 0: missing between \[\(1, 3\)\]"),
        (saboteurs.Reorders, "plain", r"call 1: received \[1, 3, 2, 4\] of 4"),
        (saboteurs.Reorders, "resumable", r"call 1: received \[1, 3, 2, 4\] of 4"),
        (saboteurs.MixesUp, "plain", r"call 1: received \[-1, -1, -1, 4\] of 4"),
        (saboteurs.Renumbers, "resumable", "call 1: other event ids than the upstream's"),
        (saboteurs.FallsSilent, "plain", "call 1: it is (silent|ambiguous) after 3 messages"),
        (saboteurs.ExecutesTwice, "plain", "call 1: executed 2 times"),
    ],
)
async def test_sabotage_is_reported(
    kind: type[NumberingUpstream], upstream: UpstreamKind, reported: str
) -> None:
    verdict = judge(await running.run(plain(upstream), upstream_of=saboteurs.upstream_of(kind)))
    assert [each for each in verdict.problems if re.search(reported, each)], verdict.problems


async def test_lost_and_duplicated_messages_are_counted() -> None:
    dropped = judge(await running.run(plain(), upstream_of=saboteurs.upstream_of(saboteurs.Drops)))
    assert (dropped.lost, dropped.duplicated) == (3, 0)
    doubled = judge(await running.run(plain(), upstream_of=saboteurs.upstream_of(saboteurs.Duplicates)))
    assert (doubled.lost, doubled.duplicated) == (0, 3)


async def test_what_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "WORK", 1.0)
    monkeypatch.setattr(running, "LEAVING", 0.1)
    verdict = judge(await running.run(plain(), upstream_of=saboteurs.upstream_of(saboteurs.Hangs)))
    assert "the clients did not finish within 1 s" in verdict.problems
    assert "call 1: it is open after 1 messages" in verdict.problems


async def test_a_connection_that_is_left_over_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LEAVING", 0.1)
    verdict = judge(await running.run(plain(), upstream_of=saboteurs.haunted))
    assert verdict.problems == ["1 connections to the upstream outlive the proxies"]


async def test_a_proxy_that_dies_by_itself_is_reported() -> None:
    schedule = plain()
    ledger = Ledger(schedule)
    with anyio.fail_after(running.DEADLINE):
        async with numbering_upstream(schedule, ledger) as upstream, store_of(schedule) as store:
            async with replicas_of(schedule, upstream.url, store, []) as replicas:
                (replica,) = replicas.all
                assert replica.served is not None
                first = replica.served.command
                first.send(signal.SIGKILL)
                await first.ends()
                await until(lambda: replica.served is not None and replica.served.command is not first)
            assert replicas.problems == ["a proxy ended with -9"]
