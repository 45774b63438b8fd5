"""The page about recovery."""

from __future__ import annotations

from . import report, valkey
from .follower import AT_ONCE
from .processes import Cores
from .recovery import BUSY, CALM, Found, Outcome, Plan

PACKAGES = ("shadowcat-mcp", "uvloop", "starlette", "uvicorn", "msgspec", "redis")
OWNER_KILLED = 1000
"""ms in which a stream of an owner that was killed is live elsewhere."""

NOTES = """\
Each fault {count} times, by itself. Two replicas share the store, with default settings (`replica_lease`
0.8 s); the server sends {busy:g} events per second ({calm:g} where the owner is killed with all of them on
the tape), with ids. From the fault to the event or answer at the client, but where another beginning is
named. A stream is live with the first event that was due after the fault and came over a connection begun
after it. The client comes back {at_once:g} ms after each loss, without waiting as long as `retry:` says. A
proxy that is started again includes the start of Python and the dead one's lease; a store, its own end and
start. `attempts`: the most that a client made; `wrong`: events lost, twice or out of order."""


def page(plan: Plan, found: Found, cores: Cores) -> str:
    headings = ("fault", "store", "p50 ms", "p95 ms", "max ms", "attempts", "wrong", "not survived")
    titles = {fault.name: fault.title for fault in plan.faults}
    rows = [
        (titles[name], store, *_row(found[name, store]))
        for name in titles
        for store in plan.stores
        if (name, store) in found
    ]
    parts = [
        f"# {report.today()}: recovery",
        report.machine(cores, PACKAGES, valkey.version()),
        report.markdown(headings, rows, text=2),
        *_targets(found),
        NOTES.format(count=plan.count, busy=BUSY, calm=CALM, at_once=1000 * AT_ONCE),
    ]
    return "\n\n".join(parts) + "\n"


def failed(found: Found) -> bool:
    """Whether something was lost, or not survived."""
    return any(outcome.failed or outcome.wrong for outcome in found.values())


def _row(outcome: Outcome) -> tuple[str, ...]:
    times = [_share(outcome, share) for share in (50, 95, 100)]
    wrong = f"**{outcome.wrong}**" if outcome.wrong else "0"
    lost = f"**{len(outcome.failed)}**: {outcome.failed[0]}" if outcome.failed else "0"
    return *(f"{each:,.0f}" for each in times), str(outcome.attempts), wrong, lost


def _share(outcome: Outcome, share: int) -> float:
    """That percentile, in ms."""
    ordered = sorted(outcome.seconds) or [float("nan")]
    return 1000 * ordered[-(-share * len(ordered) // 100) - 1]


def _targets(found: Found) -> list[str]:
    lines = []
    for (name, store), outcome in found.items():
        if name.endswith("-killed"):
            p95 = _share(outcome, 95)
            verdict = "kept" if p95 < OWNER_KILLED else "**missed**"
            lines.append(f"- {name}, {store}: p95 < {OWNER_KILLED:,} ms: {p95:,.0f} ms, {verdict}")
    return ["Target:\n\n" + "\n".join(lines)] if lines else []
