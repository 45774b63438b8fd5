"""What recording costs the whole proxy: the same load on Shadowcat with each store and tape, in turns."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from statistics import median

from . import report
from .bench import Bench, Plan, Sample, Samples, tell
from .processes import cpu_seconds
from .wire import fetch

HEADINGS = (
    "store",
    "tape",
    "requests/s",
    "± %",
    "÷ memory, tape off",
    "÷ same store, tape off",
    "p50 µs",
    "p99 µs",
    "CPU µs/request",
    "over memory, tape off",
    "frames/request",
    "dropped",
    "RSS MB",
)
_IDLE = 0.1
_PATIENCE = 30


@dataclass
class Proxies:
    """What was measured."""

    plan: Plan
    samples: Samples
    frames: dict[str, tuple[float, float]]
    """Frames recorded per request, and frames dropped, by stack."""

    @property
    def failed(self) -> bool:
        """Whether there was a wrong answer, or a frame that was not recorded."""
        dropped = any(dropped for _, dropped in self.frames.values())
        return dropped or any(sample.errors for runs in self.samples.values() for sample in runs)


def run(plan: Plan, bench: Bench) -> Proxies:
    """Measure the plan; what a store does when its load is over is not in the way of the next one."""
    found = Proxies(plan, defaultdict(list), {})
    for stack in plan.stacks:
        bench.start(stack)
        bench.measure(stack, plan.cases[0], plan.warmup, 0)
    for number, case in product(range(plan.rounds), plan.cases):
        # From both ends in turn: nobody always comes after the same one.
        for stack in plan.stacks[:: 1 if number % 2 else -1]:
            sample = bench.measure(stack, case, plan.seconds, plan.warmup)
            _wait_until_idle(bench.pids[stack.name])
            found.samples[case.name, stack.name].append(sample)
            tell(f"round {number + 1}/{plan.rounds} {case.name:8} {stack.name:24} {sample.rate:9,.0f}/s")
    for stack in plan.stacks:
        found.frames[stack.name] = asyncio.run(_frames(bench.ports[stack.name]))
    return found


def _wait_until_idle(pid: int) -> None:
    used = cpu_seconds(pid)
    for _ in range(_PATIENCE):
        time.sleep(_IDLE)  # noqa: TID251 - no event loop runs here
        before, used = used, cpu_seconds(pid)
        if used == before:
            return


async def _frames(port: int) -> tuple[float, float]:
    metrics = (await fetch(port, "/metrics")).decode()
    values = dict(re.findall(r"^shadowcat_(\w+)_total ([0-9]+)$", metrics, re.MULTILINE))
    recorded, dropped = int(values["frames_recorded"]), int(values["frames_dropped"])
    return recorded / max(1, int(values["client_requests"])), dropped


def tables(found: Proxies) -> list[str]:
    parts = []
    for case in found.plan.cases:
        rows = [_row(found, case.name, stack.name) for stack in found.plan.stacks]
        parts += [f"### {case.title}", report.markdown(HEADINGS, rows, text=2)]
    return parts


def _row(found: Proxies, case: str, name: str) -> tuple[str, ...]:
    _, tape, kind = name.split("-")
    mine, base = found.samples[case, name], found.samples[case, "shadowcat-off-memory"]
    rates = [sample.rate for sample in mine]
    frames, dropped = found.frames[name]
    errors = sum(sum(sample.errors.values()) for sample in mine)
    return (
        kind,
        tape,
        f"{median(rates):,.0f}" + (f" (**{errors} errors**)" if errors else ""),
        f"{50 * (max(rates) - min(rates)) / median(rates):.0f}",
        _ratio(mine, base),
        _ratio(mine, found.samples[case, f"shadowcat-off-{kind}"]),
        f"{median(sample.p50 for sample in mine):,.0f}",
        f"{median(sample.p99 for sample in mine):,.0f}",
        f"{median(sample.cpu or 0 for sample in mine):.1f}",
        report.compare(mine, base, lambda a, b: (a.cpu or 0) - (b.cpu or 0), "{:+.1f}"),
        f"{frames:.2f}",
        f"{dropped:,.0f}",
        f"{max(sample.rss for sample in mine) / 1e6:,.0f}",
    )


def _ratio(mine: list[Sample], theirs: list[Sample]) -> str:
    return report.compare(mine, theirs, lambda a, b: a.rate / b.rate)
